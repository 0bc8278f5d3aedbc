"""`blemish ood score | export`: one detector, on new images or in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from ...errors import ArgumentError, BlemishError
from ...files import check_output, open_lines, whole_file
from ..console import Speaker
from ..options import JsonOption, RateOption, check_share, spelled_out
from .inputs import fit_only, make_detector, opened
from .options import LearnOption, MemberOption, ModelOption, NetworkOptions, ReadingOptions, StreamOptions

if TYPE_CHECKING:
    from ...datasets.labelled import LabelledImages
    from ...evaluation.classifiers import Reader, Score, ScoredImages
    from ...ood.classifier import Classifier


@spelled_out
def score(
    images: Annotated[Path, typer.Argument(help="Images to judge: folder, .npz or .csv.")],
    *,
    model: ModelOption,
    detector: Annotated[str, typer.Option(help="One detector, perhaps with parameters.")] = "gradient",
    out: Annotated[
        Path | None, typer.Option(help="File for the JSON lines, written when all are known; default: stdout.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="In-distribution images held out for p-values: each line then has one.")
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(help="Flag outliers so that at most this share of the flagged is expected to be wrong."),
    ] = None,
    learn_from: LearnOption = None,
    member: MemberOption = None,
    network: NetworkOptions,
    reading: StreamOptions,
) -> None:
    """Score images, one JSON line each as soon as it is known: larger = less likely from the training distribution.

    With --calibration each line has a conformal p-value: of images like those, at most the share p scores so high.
    With --fdr as well, `outlier` is the verdict of Benjamini and Hochberg over all images, and lines come at the end.

    Example: blemish ood score photos --model mobilenet_v2 --calibration known --fdr 0.1
    """
    from ...discoveries import benjamini_hochberg
    from ...evaluation.classifiers import require_disjoint, score_batches

    check_share("--fdr", fdr)
    if fdr is not None and calibration is None:
        raise ArgumentError.about("--fdr", expected="--calibration with held-out images as well", got="none")
    say = Speaker()
    if out is not None:
        check_output(out)
    name, chosen = make_detector(detector)
    judged, learned, known = opened(images, learn_from, calibration)
    assert judged is not None
    classifier = network.open(model, member)
    with say.progress() as progress:
        reader = reading.reader(progress)
        fitted, seen = fit_only(classifier, (name, chosen), learned, reader=reader)
        scores = {name: fitted.score}
        held_out = None if known is None else _held_out(classifier, known, scores, seen, reader=reader)
        with _lines(out) as write:
            parts = []
            for part in score_batches(classifier, judged, scores, reading=reader):
                require_disjoint({"images": part.digests, "images to learn from": seen})
                rows = _score_rows(part, name, held_out)
                if fdr is None:
                    write(rows)
                parts += rows
            if fdr is not None:  # the verdict is over all images together
                flagged = benjamini_hochberg([row["p_value"] for row in parts], fdr)
                write([row | {"outlier": bool(flag)} for row, flag in zip(parts, flagged, strict=True)])
                say.line(f"{flagged.sum()} of {len(parts)} images flagged at a false discovery rate of {fdr:g}.")
    if out is not None:
        say.line(f"{len(parts)} images: {out}")


def _held_out(
    classifier: Classifier, images: LabelledImages, scores: Mapping[str, Score], seen: frozenset[str], *, reader: Reader
) -> ScoredImages:
    """The images that make p-values; their scores are raised, so that one that is judged again keeps its own.

    Refused where one of them was learned from: such scores are smaller than those of new images.
    """
    from ...calibrate import with_margin
    from ...evaluation.classifiers import require_disjoint, score_images

    found = score_images(classifier, images, scores, reading=reader, stage="calibrating")
    require_disjoint({"calibration images": found.digests, "images to learn from": seen})
    return replace(found, scores={name: with_margin(values) for name, values in found.scores.items()})


def _score_rows(part: ScoredImages, name: str, held_out: ScoredImages | None) -> list[dict[str, Any]]:
    from ...calibrate import conformal_p_values
    from ...evaluation.classifiers import require_disjoint

    rows: list[dict[str, Any]] = [
        {"image": image, "score": float(value), "predicted": int(label)}
        for image, value, label in zip(part.names, part.scores[name], part.predicted, strict=True)
    ]
    if held_out is not None:
        require_disjoint({"images": part.digests, "calibration images": held_out.digests})
        p_values = conformal_p_values(held_out.scores[name], part.scores[name])
        rows = [row | {"p_value": float(p)} for row, p in zip(rows, p_values, strict=True)]
    return rows


@contextmanager
def _lines(out: Path | None) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write JSON lines: each batch as soon as it is known, or, into a file, all of them in one step at the end.

    So a run that is killed leaves the file of an earlier one as it was. One that an image stops keeps what it has.
    """
    stopped: BaseException | None = None
    with ExitStack() as stack:
        if out is None:
            file: IO[str] = sys.stdout
        else:
            file = stack.enter_context(open_lines(stack.enter_context(whole_file(out)), "w"))

        def write(rows: list[dict[str, Any]]) -> None:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()

        try:
            yield write
        except (BlemishError, KeyboardInterrupt) as error:
            stopped = error
    if stopped is not None:
        raise stopped


@spelled_out
def export_to_file(
    *,
    model: ModelOption,
    detector: Annotated[str, typer.Option(help="One detector of a single forward pass, perhaps with parameters.")],
    calibration: Annotated[
        Path | None, typer.Option(help="In-distribution images held out for p-values and verdicts; default: neither.")
    ] = None,
    false_alarm_rate: RateOption = 0.05,
    learn_from: LearnOption = None,
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on, best those of --calibration; default: drawn pictures.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write; run.py comes beside it.")] = Path("model.onnx"),
    member: MemberOption = None,
    network: NetworkOptions,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Write classifier and detector as one ONNX file that needs neither torch nor blemish: docs/export.md.

    Pictures go in; class, score, p-value and verdict come out. Both ways are compared on images first: a file that
    would say something else is not written. Beside it lies run.py, which prints the lines.

    Example: blemish ood export --model mobilenet_v2 --detector energy --calibration known --out device/model.onnx
    """
    from ...calibrate import calibrate
    from ...export.classifier import check_detector, export_classifier
    from ..export import print_exported

    check_output(out)
    name, chosen = make_detector(detector)
    check_detector(chosen)
    shown, learned, held_out = opened(images, learn_from, calibration)
    classifier = network.open(model, member)
    say, known = Speaker(), None
    with say.progress() as progress:
        reader = reading.reader(progress)
        fitted, seen = fit_only(classifier, (name, chosen), learned, reader=reader)
        if held_out is not None:
            scores = _held_out(classifier, held_out, {name: fitted.score}, seen, reader=reader).scores[name]
            known = calibrate(scores, false_alarm_rate=false_alarm_rate)
        source = None if shown is None else shown.source
        made = export_classifier(classifier, fitted, out, calibration=known, images=source, progress=progress)
    print_exported(made, "onnx", as_json=as_json)
