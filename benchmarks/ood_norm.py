"""The norm of the gradient without the softmax factor, beside the score of the gradient method.

    python benchmarks/ood_data.py DATA PAIRS
    BLEMISH_WEIGHTS=DATA/weights python benchmarks/ood_norm.py PAIRS --picture norm.png

At T = 1, for the class y of the largest logit, grad log p_y = p_y G, where G is the sum of exp(h_c - h_y) grad (h_y -
h_c) over the other classes c. So ||G|| is the norm at T = 1 over p_y, the softmax factor; no step is taken. ResNet-20
for CIFAR-10 against Tiny-ImageNet: ROC-AUC, FPR95 and both PR-AUC of ||G||, of the norm at T = 1 with the factor, of
MSP, and of the detector's defaults, with the deviation over 100 bootstraps, in percent. Nothing is tuned.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ood_transfer import figures

from blemish.datasets.labelled import from_class_folders, open_labelled
from blemish.evaluation.classifiers import Reader, score_images
from blemish.ood import MSP, Gradient, Outputs, open_classifier
from blemish.report import ood_figures as draw

BARE = "‖G‖ at T = 1, no step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="outliers; three times as many in-distribution images")
    parser.add_argument("--network", default="cifar10_resnet20")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    classifier = open_classifier(options.network)
    normal = from_class_folders(options.pairs / "cifar10_test" / "test").sample(3 * options.limit, seed=0)
    outliers = open_labelled(options.pairs / "tiny_imagenet").sample(options.limit, seed=1)
    functions: dict[str, Callable[[Outputs], NDArray[np.float64]]] = {
        "msp": MSP().score,
        "norm at T = 1, no step": PLAIN.score,
        BARE: without_softmax_factor,
        "gradient, its defaults": Gradient().score,
    }
    reading = Reader(batch_size=64)
    inside, outside = (score_images(classifier, images, functions, reading=reading) for images in (normal, outliers))
    print(f"{classifier.name}: {len(inside)} in-distribution images, {len(outside)} outliers\n")
    print("| | ROC-AUC | FPR95 | PR-AUC (outlier) | PR-AUC (inlier) |\n|---|---|---|---|---|")
    for name in functions:
        print(f"| {name} | {' | '.join(figures(inside.scores[name], outside.scores[name]))} |", flush=True)
    if options.picture:
        options.picture.write_bytes(draw.histogram_plot(inside, outside, BARE))


PLAIN = Gradient(temperature=1.0, eps=0.0)


def without_softmax_factor(outputs: Outputs) -> NDArray[np.float64]:
    """||G||: the norm at T = 1 over the largest probability."""
    logits = outputs.logits.astype(np.float64)
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    return PLAIN.score(outputs) / confidence


if __name__ == "__main__":
    main()
