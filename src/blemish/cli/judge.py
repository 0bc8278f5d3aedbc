"""`blemish predict` and `evaluate`, on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import ArgumentError
from ..files import sole_writer
from ..types import Decision, PartDecision
from . import options
from .console import Speaker, print_evaluation
from .models import JudgeOptions, Subfolders, image_paths
from .options import check_report, check_share, spelled_out
from .results import ResultWriter, lines_in

if TYPE_CHECKING:
    from ..detector import Detector


@dataclass(frozen=True)
class WantedOutputs:
    """What `predict` gives beside the lines."""

    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and heat maps; default: stdout.")] = None
    heatmaps: Annotated[
        Literal["png", "npy", "none"], typer.Option(help="With --out. png: a threshold is the middle of the scale.")
    ] = "png"
    overlays: Annotated[
        bool, typer.Option("--overlays", help="With --out: also each picture that has regions, with their contours.")
    ] = False
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the regions of all images as COCO JSON here.")
    ] = None
    fdr: options.FdrOption = None
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 3 where an image is anomalous, with 4 where one has no verdict."),
    ] = False

    @property
    def maps(self) -> bool:
        """Whether maps on the original pixels are."""
        return self.out is not None and (self.heatmaps != "none" or self.overlays)

    def check(self, detector: Detector, model: Path, say: Speaker) -> None:
        """Refuse what the model does not have, before the work."""
        if self.exit_code and detector.calibration_ is None:
            got = f"{model}, which has none"
            raise ArgumentError.about("--exit-code", expected="a model with a threshold", got=got)
        _check_regions(detector, model, say, {"--overlays": self.overlays, "--coco": self.coco is not None})
        if self.overlays and self.out is None:
            raise ArgumentError.about("--overlays", expected="a folder for them, --out FOLDER", got="none")
        check_share("--fdr", self.fdr)
        if self.fdr is not None:
            detector.choose_alarms([], self.fdr)  # refuses what cannot be promised

    @contextmanager
    def writer(self, model: Path) -> Iterator[ResultWriter]:
        """What writes them, and no other process meanwhile."""
        with nullcontext() if self.out is None else sole_writer(lines_in(self.out)):
            yield ResultWriter(self.out, self.heatmaps, model=model, overlays=self.overlays, coco=self.coco)


@spelled_out
def predict(
    model: options.ModelArgument, images: options.ImagesArgument, *, wanted: WantedOutputs, reading: JudgeOptions
) -> None:
    """Judge images: one JSON line each, written as soon as it is known.

    Of a data set's folder the test images are judged; of any other folder all images, and no masks.

    A line says how anomalous the image is, and where: regions of the map with box, contour, area and p-value. Regions
    have a promise of their own: of normal images, at most the share of the false-alarm rate shows any. "anomalous"
    follows the image's score alone. On an image with a defect nothing is promised of what lies beside it.

    A model that was fitted with --part-by also writes a line for each part, and the exit status follows the parts.
    --fdr adds one line for the batch, or DIR/batch.json, with the images or parts that raise an alarm; the exit status
    follows it. A batch is complete: nobody chose its images by their scores.

    An unreadable file gives a line with "error" and does not stop the run; --on-error raise stops there instead.

    Exit status: 0 done, 1 refused, 2 wrong options; 3 and 4 with --exit-code alone.
    """
    say = Speaker()
    out, paths = wanted.out, image_paths(images, say)
    detector = reading.load(model)
    wanted.check(detector, model, say)
    paths = [path for path in paths if out is None or out.resolve() not in path.resolve().parents]
    with wanted.writer(model) as writer:
        left = writer.left(paths)
        if len(left) < len(paths):
            judged = f"{len(paths) - len(left)} of {len(paths)} images"
            say.line(f"{judged} were judged by an earlier run; their lines stay.")
        _judge(
            detector,
            left,
            writer,
            say,
            wanted=wanted,
            root=images[0] if len(images) == 1 and images[0].is_dir() else None,
        )
    say.skipped(detector.skipped_)
    if out is not None:
        say.line(f"{len(paths) - len(detector.skipped_)} images: {out / 'results.jsonl'}")
    if out is not None and detector.parts_ is not None:
        say.line(f"Parts: {out / 'parts.jsonl'}")
    if wanted.exit_code:
        raise typer.Exit({"normal": 0, "anomalous": 3, "not judged": 4}[writer.verdict()])


def _judge(
    detector: Detector,
    paths: Sequence[Path],
    writer: ResultWriter,
    say: Speaker,
    *,
    wanted: WantedOutputs,
    root: Path | None,
) -> None:
    """Write a line for each image, as soon as it is known, and what is said of all together."""
    from ..images.source import from_paths

    wants_all = detector.parts_ is not None or wanted.fdr is not None
    decisions = writer.earlier() if wants_all else []
    with writer, say.progress() as progress:
        source = replace(from_paths(paths, max_pixels=detector.max_pixels), root=root)
        for decision in detector.predict(source, maps=wanted.maps, progress=progress) if paths else ():
            writer.write(decision)
            if wants_all:
                decisions.append(replace(decision, map=None, regions=None))
        writer.write_skipped(detector.skipped_)
        writer.write_coco()
        _judge_together(detector, decisions, writer, say, fdr=wanted.fdr, root=root)


def _judge_together(
    detector: Detector,
    decisions: Sequence[Decision],
    writer: ResultWriter,
    say: Speaker,
    *,
    fdr: float | None,
    root: Path | None,
) -> None:
    """Write the verdicts on parts, and the alarms of the batch, where they are wanted."""
    from ..images.source import from_paths

    found: Sequence[Decision | PartDecision] = decisions
    if detector.parts_ is not None:
        named = replace(from_paths([decision.name for decision in decisions]), root=root)
        found = detector.judge_parts(decisions, named.paths())
        writer.write_parts(found)
    if fdr is not None:
        chosen = detector.choose_alarms(found, fdr)
        writer.write_batch([one.name for one in found], chosen)
        say.line(chosen.said("parts" if detector.parts_ is not None else "images"))


@dataclass(frozen=True)
class MeasureOptions(JudgeOptions):
    """As `predict`, but a file that cannot be read is an error: figures are of all images."""

    on_error: options.ErrorOption = "raise"


@spelled_out
def evaluate_model(
    model: options.ModelArgument,
    data: options.LabelledArgument,
    *,
    folders: Subfolders,
    report: options.ReportOption = None,
    pixels: options.PixelsOption = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add 95 % intervals of every figure (slower).")
    ] = False,
    allow_overlap: options.OverlapOption = False,
    fdr: options.FdrOption = None,
    reading: MeasureOptions,
    as_json: options.JsonOption = False,
) -> None:
    """Measure a model on labelled images: AUROC, AU-PRO, F1 at the threshold that was fixed before, and more."""
    from ..evaluation.detector import evaluate

    say = Speaker()
    check_report(report, beside=[model])
    check_share("--fdr", fdr)
    dataset, taken = folders.open(data, say)
    detector = reading.load(model)
    with say.progress() as progress:
        evaluation = evaluate(
            detector, dataset, pixels=pixels, intervals=intervals, allow_overlap=allow_overlap, fdr=fdr,
            progress=progress,
        )  # fmt: skip
    extra: dict[str, object] = {"data": taken.as_json()} | ({} if report is None else {"report": str(report)})
    print_evaluation(evaluation, as_json, extra=extra)
    if report is not None:
        from ..report.evaluation import write_report
        from ..report.facts import facts

        write_report(evaluation, report, title=data.resolve().name, facts=facts(detector))
        say.line(f"Report: {report}")
    say.skipped(detector.skipped_)


def _check_regions(detector: Detector, model: Path, say: Speaker, wanted: Mapping[str, bool]) -> None:
    """Say where a model has no regions, and why; refuse the options that want some."""
    if detector.peaks_ is not None:
        return
    why = (
        "it keeps no peaks of held-out maps. Its method, or that of one of its folds, has no maps, its calibration is "
        "full, or it is older than regions, or with cross than those of folds (fit again)."
    )
    what = "No regions"
    if detector.calibration_ is None:
        what, why = "No verdicts and no regions", "it has no threshold. `blemish recalibrate` makes one of new images."
    for option in (option for option, is_wanted in wanted.items() if is_wanted):
        raise ArgumentError.about(option, expected="a model with regions", got=f"{model}: {why}")
    say.line(f"{what} from {model}: {why}")
