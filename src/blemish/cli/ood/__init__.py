"""`blemish ood`: out-of-distribution detection for classifiers, on the command line."""

from __future__ import annotations

import typer

from . import evaluate, score, tune

ood_app = typer.Typer(
    no_args_is_help=True,
    help="Finds images that do not belong to what a classifier was trained on.\n\n"
    "INLIERS and OUTLIERS are folders, .npz files with `images` (and `labels`), or .csv files with lines "
    "`path,class number`. The classifier is --model: a torchvision name, timm:NAME, cifar10_resnet20 (32, 44, 56), "
    "module:factory for a network of your own, or a .pt2 file of torch.export. Its weights come from --weights, from "
    "$BLEMISH_WEIGHTS, or from the hub.\n\n"
    "Detectors: `blemish list detectors`; one with parameters is written gradient,temperature=5,eps=0.002.",
)
for name, command in (
    ("score", score.score),
    ("export", score.export_to_file),
    ("evaluate", evaluate.evaluate_outliers),
    ("tune", tune.tune),
    ("ablate", tune.ablate),
    ("reliability", evaluate.measure_reliability),
):
    ood_app.command(name)(command)
