"""`blemish ood evaluate | reliability`: detectors on labelled images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...files import make_folder
from ..console import Speaker, print_rows
from ..options import JsonOption, ReportOption, SeedOption, check_report, spelled_out
from . import options
from .inputs import digests_of, make_detectors, named_sets, open_images, read_tunings, tunable
from .results import (
    accuracy_of,
    outliers_json,
    print_outliers,
    say_left_out,
    selective_cells,
    selective_facts,
    tuned_facts,
    write_findings,
)

if TYPE_CHECKING:
    from ...datasets.labelled import LabelledImages
    from ...evaluation.classifiers import Reader
    from ...evaluation.tuning import AblationRow, Tuning
    from ...ood import Classifier, OODDetector


@spelled_out
def evaluate_outliers(
    inliers: Annotated[Path, typer.Argument(help="In-distribution test images.")],
    *,
    model: options.ModelOption,
    outliers: Annotated[list[str], typer.Option(metavar="[NAME=]PATH", help="A set of outliers; repeatable.")],
    detectors: options.DetectorsOption = None,
    tuned: options.TunedOption = None,
    exclude_tuned: Annotated[
        bool, typer.Option("--exclude-tuned", help="Test without the images that were tuned on, instead of stopping.")
    ] = False,
    learn_from: options.LearnOption = None,
    labels: options.LabelsOption = "none",
    ablate: Annotated[bool, typer.Option("--ablate", help="Also take the gradient method apart, on each set.")] = False,
    repetitions: Annotated[int, typer.Option(min=2, help="Of the bootstrap over images.")] = 100,
    limit: options.LimitOption = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder that keeps finished sets, so that a stopped run goes on from there.")
    ] = None,
    report: ReportOption = None,
    member: options.MemberOption = None,
    network: options.NetworkOptions,
    seed: SeedOption = 0,
    reading: options.ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Compare detectors on labelled sets, all on one forward pass: AUROC, FPR95 and average precision both ways.

    Each figure has the mean and deviation of a bootstrap over images. An image that is in two sets, or that
    parameters were tuned on, stops the run. With labels, selective prediction is measured as well.

    Example: blemish ood evaluate test --model resnet50 --outliers textures=dtd --learn-from train --report ood.html
    """
    from ...evaluation.classifiers import evaluate_ood
    from ...evaluation.tuning import reliability_ood

    say = Speaker()
    check_report(report)
    if scores is not None:
        make_folder(scores)
    tunings = read_tunings(tuned)
    normal = open_images(inliers, labels, limit, seed)
    sets = {name: open_images(path, "none", limit, seed) for name, path in named_sets(outliers).items()}
    learned = None if learn_from is None else open_images(learn_from, labels, None, seed)
    classifier = network.open(model, member)
    chosen = make_detectors(detectors, classifier, tunings)
    with say.progress() as progress:
        reader = reading.reader(progress)
        evaluation = evaluate_ood(
            classifier,
            normal,
            sets,
            detectors=chosen,
            learn_from=learned,
            tuned_on=digests_of(tunings),
            exclude_tuned=exclude_tuned,
            repetitions=repetitions,
            seed=seed,
            reading=reader,
            keep=scores,
        )
        rows = _ablated(classifier, chosen, normal, sets, tunings=tunings, reader=reader) if ablate else []
    figures = reliability_ood(evaluation.inliers) if evaluation.inliers.labels is not None else ()
    if as_json:
        typer.echo(json.dumps(outliers_json(evaluation, rows, figures, tunings)))
    else:
        print_outliers(evaluation, rows, figures)
        for tuning in tunings:
            say.line("{detector}: T {temperature:g}, eps {eps:g}, tuned on {tuned_on}".format(**tuned_facts(tuning)))
    for warning in evaluation.warnings:
        say.line(f"warning: {warning}")
    say_left_out(say, evaluation.left_out)
    title = f"{classifier.name}: {inliers.name}"
    write_findings(report, say, title, evaluation=evaluation, tunings=tunings, ablation=rows, figures=figures)


def _ablated(
    classifier: Classifier,
    chosen: Mapping[str, OODDetector],
    normal: LabelledImages,
    sets: Mapping[str, LabelledImages],
    *,
    tunings: Sequence[Tuning],
    reader: Reader,
) -> list[AblationRow]:
    """The gradient method taken apart on each set; nothing where it is not among the detectors."""
    from ...evaluation.tuning import ablate_ood

    gradient = next((found for name, found in chosen.items() if name.split(",")[0] == "gradient"), None)
    if gradient is None:
        return []
    tuning = next((tuning for tuning in tunings if tuning.detector == type(gradient).__name__), None)
    method, seen = tunable(gradient), digests_of(tunings)
    found = (
        ablate_ood(classifier, method, normal, images, tuned_on=seen, tuning=tuning, reading=reader)
        for images in sets.values()
    )
    return [row for rows in found for row in rows]


@spelled_out
def measure_reliability(
    inliers: Annotated[Path, typer.Argument(help="Labelled in-distribution images.")],
    *,
    model: options.ModelOption,
    labels: options.LabelsOption = "folders",
    detectors: options.DetectorsOption = None,
    bin_size: Annotated[int, typer.Option(min=1, help="Images between two points of the curve.")] = 500,
    limit: options.LimitOption = None,
    learn_from: options.LearnOption = None,
    report: ReportOption = None,
    member: options.MemberOption = None,
    network: options.NetworkOptions,
    seed: SeedOption = 0,
    reading: options.ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure how well scores tell right predictions from wrong ones: risk, coverage, and accuracy of the uncertain.

    Example: blemish ood reliability test --model resnet50 --labels folders --detectors "msp gradient"
    """
    from ...evaluation.classifiers import fit_detectors, require_disjoint, score_images
    from ...evaluation.tuning import reliability_ood

    say = Speaker()
    check_report(report)
    images = open_images(inliers, labels, limit, seed)
    learned = None if learn_from is None else open_images(learn_from, labels, None, seed)
    classifier = network.open(model, member)
    chosen = make_detectors(detectors, classifier, [])
    with say.progress() as progress:
        reader = reading.reader(progress)
        usable, left_out, seen = fit_detectors(classifier, chosen, learned, reading=reader)
        scores = {name: detector.score for name, detector in usable.items()}
        scored = score_images(classifier, images, scores, reading=reader)
        require_disjoint({"images": scored.digests, "images to learn from": seen.digests if seen else ()})
        figures = reliability_ood(scored, bin_size=bin_size)
    say_left_out(say, left_out)
    if as_json:
        typer.echo(json.dumps({"accuracy": accuracy_of(figures), "reliability": [selective_facts(f) for f in figures]}))
    else:
        print_rows([selective_cells(f) for f in figures])
        typer.echo(f"Accuracy {accuracy_of(figures):.4f} on {len(figures[0].wrong)} images.")
    write_findings(report, say, f"{classifier.name}: reliability", figures=figures)
