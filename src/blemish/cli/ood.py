"""`blemish ood`: out-of-distribution detection for classifiers, on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArgumentError, BlemishError
from ..files import check_output, make_folder, open_lines, whole_file
from ..parameters import read_texts, split_spec
from .console import Speaker, print_rows
from .options import (
    BatchOption,
    DeviceOption,
    ErrorOption,
    JsonOption,
    RateOption,
    ReportOption,
    SeedOption,
    WorkersOption,
    check_share,
    read_option,
    spelled_out,
)  # fmt: skip

if TYPE_CHECKING:
    from ..datasets.labelled import LabelledImages
    from ..evaluation.classifiers import OODEvaluation, Reader, ScoredImages
    from ..evaluation.tuning import AblationRow, SelectiveFigures, Tuning
    from ..ood import Classifier, OODDetector

ood_app = typer.Typer(
    no_args_is_help=True,
    help="Finds images that do not belong to what a classifier was trained on.\n\n"
    "INLIERS and OUTLIERS are folders, .npz files with `images` (and `labels`), or .csv files with lines "
    "`path,class number`. The classifier is --model: a torchvision name, timm:NAME, cifar10_resnet20 (32, 44, 56), "
    "module:factory for a network of your own, or a .pt2 file of torch.export. Its weights come from --weights, from "
    "$BLEMISH_WEIGHTS, or from the hub.\n\n"
    "Detectors: `blemish list detectors`; one with parameters is written gradient,temperature=5,eps=0.002.",
)

ModelOption = Annotated[str, typer.Option("--model", help="The classifier: torchvision, timm:NAME, module:factory ...")]
MemberOption = Annotated[
    list[str] | None, typer.Option("--member", help="A further network of an ensemble, by name; repeatable.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most so many images of each set, drawn by --seed.")]
LearnOption = Annotated[
    Path | None, typer.Option(help="In-distribution images for detectors that learn (mahalanobis, knn, vim, react).")
]
LabelsOption = Annotated[
    Literal["folders", "file", "none"],
    typer.Option(help="Classes of INLIERS and --learn-from. folders: each folder is a class. file: from .npz or .csv."),
]
DetectorsOption = Annotated[str | None, typer.Option(help="Separated by spaces; default: all that can run.")]
TunedOption = Annotated[
    list[Path] | None, typer.Option(help="File of `blemish ood tune`: its parameters are used; repeatable.")
]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every command: the classifier beside its name."""

    weights: Annotated[Path | None, typer.Option(help="State dict of the classifier.")] = None
    resize: Annotated[int | None, typer.Option(help="Side to resize to; default: what belongs to the classifier.")] = (
        None
    )
    crop: Annotated[int | None, typer.Option(help="Centre crop after --resize.")] = None
    white_level: Annotated[
        float | None, typer.Option(min=1, max=65535, help="White in 16-bit files: 1023 for 10 bits. Default: 65535.")
    ] = None
    device: DeviceOption = "cpu"

    def open(self, model: str, members: Sequence[str] | None = None) -> Classifier:
        """The classifier of this name, with further members of an ensemble."""
        from ..images.preprocess import Preprocess
        from ..ood import open_classifier

        if self.crop is not None and self.resize is None:
            raise ArgumentError.about("--crop", expected="--resize as well", got="none")
        preprocess = None if self.resize is None else Preprocess(self.resize, self.crop)
        found = open_classifier(
            model, weights=self.weights, preprocess=preprocess, members=members or (), device=self.device
        )
        if self.white_level is not None:
            found.preprocess = replace(found.preprocess, white_level=self.white_level)
        return found


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options of every command: how images are read."""

    batch_size: BatchOption = 16
    workers: WorkersOption = 2
    on_error: ErrorOption = "raise"

    def reader(self, progress: Any) -> Reader:
        """What reads the images."""
        from ..evaluation.classifiers import Reader

        return Reader(self.batch_size, self.workers, self.on_error, progress)


@dataclass(frozen=True, kw_only=True)
class StreamOptions(ReadingOptions):
    """The same for a command that judges whatever comes."""

    on_error: ErrorOption = "skip"


@ood_app.command()
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
    from ..calibrate import benjamini_hochberg
    from ..evaluation.classifiers import fit_detectors, require_disjoint, score_batches, score_images

    check_share("--fdr", fdr)
    if fdr is not None and calibration is None:
        raise ArgumentError.about("--fdr", expected="--calibration with held-out images as well", got="none")
    say = Speaker()
    if out is not None:
        check_output(out)
    name, chosen = _make(detector)
    judged, learned, known = _opened(images, learn_from, calibration)
    assert judged is not None
    classifier = network.open(model, member)
    with say.progress() as progress:
        reader = reading.reader(progress)
        usable, left_out, _ = fit_detectors(classifier, {name: chosen}, learned, reading=reader)
        if left_out:
            raise ArgumentError.about("--detector", expected="one that can run here", got=f"{name} {left_out[name]}")
        scores = {name: usable[name].score}
        held_out = None
        if known is not None:
            held_out = score_images(classifier, known, scores, reading=reader, stage="calibrating")
        with _lines(out) as write:
            parts = []
            for part in score_batches(classifier, judged, scores, reading=reader):
                if held_out is not None:
                    require_disjoint({"images": part.digests, "calibration images": held_out.digests})
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


def _score_rows(part: ScoredImages, name: str, held_out: ScoredImages | None) -> list[dict[str, Any]]:
    from ..calibrate import conformal_p_values

    rows: list[dict[str, Any]] = [
        {"image": image, "score": float(value), "predicted": int(label)}
        for image, value, label in zip(part.names, part.scores[name], part.predicted, strict=True)
    ]
    if held_out is not None:
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


@ood_app.command("export")
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
    from ..calibrate import calibrate, with_margin
    from ..evaluation.classifiers import fit_detectors, score_images
    from ..export.classifier import check_detector, export_classifier
    from .export import print_exported

    check_output(out)
    name, chosen = _make(detector)
    check_detector(chosen)
    shown, learned, held_out = _opened(images, learn_from, calibration)
    classifier = network.open(model, member)
    say, known = Speaker(), None
    with say.progress() as progress:
        reader = reading.reader(progress)
        usable, left_out, _ = fit_detectors(classifier, {name: chosen}, learned, reading=reader)
        if left_out:
            raise ArgumentError.about("--detector", expected="one that can run here", got=f"{name} {left_out[name]}")
        if held_out is not None:
            scored = score_images(classifier, held_out, {name: chosen.score}, reading=reader, stage="calibrating")
            known = calibrate(with_margin(scored.scores[name]), false_alarm_rate=false_alarm_rate)
        source = None if shown is None else shown.source
        made = export_classifier(classifier, usable[name], out, calibration=known, images=source, progress=progress)
    print_exported(made, "onnx", as_json=as_json)


@ood_app.command("evaluate")
@spelled_out
def evaluate_outliers(
    inliers: Annotated[Path, typer.Argument(help="In-distribution test images.")],
    *,
    model: ModelOption,
    outliers: Annotated[list[str], typer.Option(metavar="[NAME=]PATH", help="A set of outliers; repeatable.")],
    detectors: DetectorsOption = None,
    tuned: TunedOption = None,
    exclude_tuned: Annotated[
        bool, typer.Option("--exclude-tuned", help="Test without the images that were tuned on, instead of stopping.")
    ] = False,
    learn_from: LearnOption = None,
    labels: LabelsOption = "none",
    ablate: Annotated[bool, typer.Option("--ablate", help="Also take the gradient method apart, on each set.")] = False,
    repetitions: Annotated[int, typer.Option(min=2, help="Of the bootstrap over images.")] = 100,
    limit: LimitOption = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder that keeps finished sets, so that a stopped run goes on from there.")
    ] = None,
    report: ReportOption = None,
    member: MemberOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Compare detectors on labelled sets, all on one forward pass: AUROC, FPR95 and average precision both ways.

    Each figure has the mean and deviation of a bootstrap over images. An image that is in two sets, or that
    parameters were tuned on, stops the run. With labels, selective prediction is measured as well.

    Example: blemish ood evaluate test --model resnet50 --outliers textures=dtd --learn-from train --report ood.html
    """
    from ..evaluation.classifiers import evaluate_ood
    from ..evaluation.tuning import ablate_ood, reliability_ood

    say = Speaker()
    _check_report(report)
    if scores is not None:
        make_folder(scores)
    tunings = _tunings(tuned)
    normal = _open(inliers, labels, limit, seed)
    sets = {name: _open(path, "none", limit, seed) for name, path in _named(outliers).items()}
    learned = None if learn_from is None else _open(learn_from, labels, None, seed)
    classifier = network.open(model, member)
    chosen = _detectors(detectors, classifier, tunings)
    rows: list[AblationRow] = []
    with say.progress() as progress:
        reader = reading.reader(progress)
        evaluation = evaluate_ood(
            classifier,
            normal,
            sets,
            detectors=chosen,
            learn_from=learned,
            tuned_on=_digests(tunings),
            exclude_tuned=exclude_tuned,
            repetitions=repetitions,
            seed=seed,
            reading=reader,
            keep=scores,
        )
        gradient = next((d for name, d in chosen.items() if name.split(",")[0] == "gradient"), None)
        of_gradient = next((tuning for tuning in tunings if tuning.detector == type(gradient).__name__), None)
        if ablate and gradient is not None:
            for images in sets.values():
                rows += ablate_ood(
                    classifier,
                    _tunable(gradient),
                    normal,
                    images,
                    tuned_on=_digests(tunings),
                    tuning=of_gradient,
                    reading=reader,
                )
    figures = reliability_ood(evaluation.inliers) if evaluation.inliers.labels is not None else ()
    if as_json:
        typer.echo(json.dumps(_evaluation_json(evaluation, rows, figures) | {"tuned": [_tuned(t) for t in tunings]}))
    else:
        _print_evaluation(evaluation, rows, figures)
        for tuning in tunings:
            say.line("{detector}: T {temperature:g}, eps {eps:g}, tuned on {tuned_on}".format(**_tuned(tuning)))
    _say_remarks(say, evaluation)
    if report is not None:
        _write_report(report, say, f"{classifier.name}: {inliers.name}", evaluation, tunings, rows, figures)


@ood_app.command()
@spelled_out
def tune(
    inliers: Annotated[Path, typer.Argument(help="In-distribution images to tune on; test on others.")],
    *,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="File for the result, for `evaluate --tuned`.")] = Path("tuning.json"),
    outliers: Annotated[
        Path | None, typer.Option(help="Outliers to tune on: then the choice has seen outliers.")
    ] = None,
    objective: Annotated[
        Literal["outliers", "synthetic", "inliers"] | None,
        typer.Option(
            help="outliers: AUROC against --outliers. synthetic: against outliers made from INLIERS. inliers: "
            "confidence of INLIERS after the step, at a fixed temperature."
        ),
    ] = None,
    detector: Annotated[str, typer.Option(help="gradient or odin, perhaps with parameters.")] = "gradient",
    temperatures: Annotated[str | None, typer.Option(help="Such as 1,2,5; default: the published ten.")] = None,
    eps: Annotated[str | None, typer.Option(help="Such as 0,0.001; default: 21 from 0 to 0.004.")] = None,
    limit: Annotated[int, typer.Option(min=2, help="Images of each set, drawn by --seed.")] = 500,
    report: ReportOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Choose temperature and step of ODIN or of the gradient method on a grid with shared passes.

    Without outliers the choice is made on synthetic ones, or on the confidence of INLIERS; the file says which, and
    `evaluate --tuned` refuses test images that were tuned on.

    Example: blemish ood tune validation --model resnet50 --detector odin --objective inliers
    """
    from ..evaluation.tuning import Grid, tune_ood

    say = Speaker()
    check_output(out)
    _check_report(report)
    _, chosen = _make(detector)
    normal, unusual = _opened(inliers, outliers)
    assert normal is not None
    classifier = network.open(model)
    given = {
        "temperatures": temperatures and read_option("--temperatures", tuple[float, ...], temperatures, above=0),
        "eps": eps and read_option("--eps", tuple[float, ...], eps, at_least=0, at_most=10),
    }
    grid = Grid(**{name: values for name, values in given.items() if values})
    with say.progress() as progress:
        result = tune_ood(
            classifier,
            _tunable(chosen),
            normal,
            unusual,
            objective=objective,
            grid=grid,
            limit=limit,
            seed=seed,
            reading=reading.reader(progress),
        )
    result.save(out)
    if as_json:
        typer.echo(json.dumps({key: value for key, value in asdict(result).items() if key != "digests"}))
    else:
        _print_tuning(result, out)
    if report is not None:
        _write_report(report, say, f"{classifier.name}: tuning", None, [result], [], ())


@ood_app.command()
@spelled_out
def ablate(
    inliers: Annotated[Path, typer.Argument(help="In-distribution images.")],
    *,
    model: ModelOption,
    outliers: Annotated[Path, typer.Option(help="Outliers.")],
    detector: Annotated[str, typer.Option(help="gradient or odin, perhaps with parameters.")] = "gradient",
    tuned: Annotated[Path | None, typer.Option(help="File of `blemish ood tune`: its parameters are used.")] = None,
    limit: LimitOption = None,
    report: ReportOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Show what temperature, step and each block of the network are worth, by AUROC with its 95 % interval.

    Images that were tuned on are left out. With --tuned, temperature and step alone are each the best of its grid.

    Example: blemish ood ablate test --model resnet18 --outliers textures --detector gradient,temperature=5
    """
    from ..evaluation.tuning import ablate_ood

    say = Speaker()
    _check_report(report)
    chosen = _tunable(_make(detector)[1])
    tunings = _tunings(None if tuned is None else [tuned])
    for tuning in tunings:
        chosen = tuning.apply(chosen)
    normal, unusual = (_open(path, "none", limit, seed) for path in (inliers, outliers))
    classifier = network.open(model)
    with say.progress() as progress:
        rows = ablate_ood(
            classifier,
            chosen,
            normal,
            unusual,
            tuned_on=_digests(tunings),
            tuning=tunings[0] if tunings else None,
            reading=reading.reader(progress),
        )
    if as_json:
        typer.echo(json.dumps({"ablation": [asdict(row) for row in rows]}))
    else:
        print_rows([_ablation_cells(row) for row in rows])
    if report is not None:
        _write_report(report, say, f"{classifier.name}: ablation", None, [], rows, ())


@ood_app.command("reliability")
@spelled_out
def measure_reliability(
    inliers: Annotated[Path, typer.Argument(help="Labelled in-distribution images.")],
    *,
    model: ModelOption,
    labels: LabelsOption = "folders",
    detectors: DetectorsOption = None,
    bin_size: Annotated[int, typer.Option(min=1, help="Images between two points of the curve.")] = 500,
    limit: LimitOption = None,
    learn_from: LearnOption = None,
    report: ReportOption = None,
    member: MemberOption = None,
    network: NetworkOptions,
    seed: SeedOption = 0,
    reading: ReadingOptions,
    as_json: JsonOption = False,
) -> None:
    """Measure how well scores tell right predictions from wrong ones: risk, coverage, and accuracy of the uncertain.

    Example: blemish ood reliability test --model resnet50 --labels folders --detectors "msp gradient"
    """
    from ..evaluation.classifiers import fit_detectors, score_images
    from ..evaluation.tuning import reliability_ood

    say = Speaker()
    _check_report(report)
    images = _open(inliers, labels, limit, seed)
    learned = None if learn_from is None else _open(learn_from, labels, None, seed)
    classifier = network.open(model, member)
    chosen = _detectors(detectors, classifier, [])
    with say.progress() as progress:
        reader = reading.reader(progress)
        usable, left_out, _ = fit_detectors(classifier, chosen, learned, reading=reader)
        scores = {name: detector.score for name, detector in usable.items()}
        figures = reliability_ood(score_images(classifier, images, scores, reading=reader), bin_size=bin_size)
    for name, reason in left_out.items():
        say.line(f"left out: {name} {reason}")
    if as_json:
        typer.echo(json.dumps({"accuracy": _accuracy(figures), "reliability": [_selective(f) for f in figures]}))
    else:
        print_rows([_selective_cells(f) for f in figures])
        typer.echo(f"Accuracy {_accuracy(figures):.4f} on {len(figures[0].wrong)} images.")
    if report is not None:
        _write_report(report, say, f"{classifier.name}: reliability", None, [], [], figures)


# What the commands share


def _check_report(report: Path | None) -> None:
    if report is not None:
        check_output(report)


def _opened(*paths: Path | None) -> list[LabelledImages | None]:
    """What is at these paths, before a classifier is opened."""
    from ..datasets.labelled import open_labelled

    return [None if path is None else open_labelled(path) for path in paths]


def _open(path: Path, labels: str, limit: int | None, seed: int) -> LabelledImages:
    from ..datasets.labelled import LabelledImages, open_labelled

    opened = open_labelled(path, folders_are_classes=labels == "folders")
    if labels == "none":
        opened = LabelledImages(opened.source, None, opened.name)
    return opened.sample(limit, seed=seed)


def _named(outliers: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in outliers:
        name, equals, path = text.partition("=")
        key, value = (name, Path(path)) if equals else (Path(text).stem, Path(text))
        if key in named:
            raise ArgumentError.about("--outliers", expected="different names", got=key, instead="Write NAME=PATH.")
        named[key] = value
    return named


def _make(text: str) -> tuple[str, OODDetector]:
    """`gradient,temperature=5` -> its name as written, and the detector."""
    from ..ood import DETECTORS

    name, settings = split_spec(text, of="--detector")
    if name not in DETECTORS:
        raise ArgumentError.about("--detector", expected=f"one of {', '.join(DETECTORS)}", got=name)
    return text, DETECTORS[name](**read_texts(DETECTORS[name], settings, of=f"--detector {name}"))


def _detectors(text: str | None, classifier: Classifier, tunings: Sequence[Tuning]) -> dict[str, OODDetector]:
    """The detectors asked for, or all of them, with tuned parameters."""
    from ..ood import DETECTORS
    from ..ood.ensemble import MEASURES

    if text is not None and not text.split():
        raise ArgumentError.about("--detectors", expected="names, such as 'msp energy'", got=text)
    names = text.split() if text else [name for name in DETECTORS if name != "ensemble"]
    if not text and classifier.members:
        names += [f"ensemble,measure={measure}" for measure in MEASURES]
    made = dict(_make(name) for name in names)
    for tuning in tunings:
        if tuning.classifier != classifier.name.split(" + ")[0]:  # an ensemble is named after its first network
            raise ArgumentError.about("--tuned", expected=f"a file for {classifier.name}", got=tuning.classifier)
        tuned = [name for name, d in made.items() if type(d).__name__ == tuning.detector]
        if not tuned or sum(other.detector == tuning.detector for other in tunings) > 1:
            expected = "one file a detector, each for one of --detectors"
            raise ArgumentError.about("--tuned", expected=expected, got=f"a file for {tuning.detector}")
        made |= {name: tuning.apply(_tunable(made[name])) for name in tuned}
    return made


def _tunable(detector: OODDetector) -> Any:
    from ..ood import ODIN, Gradient

    if not isinstance(detector, ODIN | Gradient):
        raise ArgumentError.about("--detector", expected="gradient or odin", got=type(detector).__name__)
    return detector


def _tunings(files: Sequence[Path] | None) -> list[Tuning]:
    from ..evaluation.tuning import Tuning

    return [Tuning.load(file) for file in files or ()]


def _tuned(tuning: Tuning) -> dict[str, Any]:
    return {
        "detector": tuning.detector,
        "temperature": tuning.temperature,
        "eps": tuning.chosen_eps,
        "objective": tuning.objective,
        "tuned_on": tuning.tuned_on,
    }


def _digests(tunings: Sequence[Tuning]) -> frozenset[str]:
    return frozenset(digest for tuning in tunings for digest in tuning.digests)


def _print_tuning(tuning: Tuning, out: Path) -> None:
    """The grid, and what was chosen."""
    # A table of 21 columns fits no terminal; the report and the file have all.
    some = slice(None, None, -(-len(tuning.grid.eps) // 6))
    rows: list[dict[str, object]] = []
    for temperature, values in zip(tuning.grid.temperatures, tuning.values, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        shown = {f"eps {e:g}": f"{v:.3f}" for e, v in zip(tuning.grid.eps[some], values[some], strict=True)}
        chosen = f"{tuning.grid.eps[best]:g} ({values[best]:.3f})"
        rows.append({"temperature": f"{temperature:g}", "best eps": chosen, **shown})
    print_rows(rows)
    typer.echo(
        f"{tuning.detector}: temperature {tuning.temperature:g}, eps {tuning.chosen_eps:g}, chosen by "
        f"{tuning.objective} on {tuning.tuned_on}. {out}"
    )


def _say_remarks(say: Speaker, evaluation: OODEvaluation) -> None:
    for warning in evaluation.warnings:
        say.line(f"warning: {warning}")
    for name, reason in evaluation.left_out.items():
        say.line(f"left out: {name} {reason}")


def _print_evaluation(
    evaluation: OODEvaluation,
    ablation: Sequence[AblationRow],
    figures: Sequence[SelectiveFigures],
) -> None:
    for outliers in evaluation.outliers:
        rows = [c for c in evaluation.comparisons if c.outliers == outliers.name]
        rows.sort(key=lambda row: -row.auroc.value)
        typer.echo(f"\n{len(evaluation.inliers)} in-distribution images against {len(outliers)} of {outliers.name}:")
        print_rows(
            [
                {
                    "detector": row.detector,
                    "AUROC": f"{row.auroc.value:.4f} ± {row.auroc.deviation:.4f}",
                    "FPR95": f"{row.fpr_at_95_tpr.value:.4f} ± {row.fpr_at_95_tpr.deviation:.4f}",
                    "FPR95 (in-dist. positive)": f"{row.fpr_at_95_tpr_normal.value:.4f}",
                    "AP outliers": f"{row.average_precision.value:.4f}",
                    "AP in-dist.": f"{row.average_precision_normal.value:.4f}",
                    "ties": f"{row.tie_share:.1%}",
                }
                for row in rows
            ]
        )
    if evaluation.accuracy is not None:
        typer.echo(f"Accuracy of the classifier: {evaluation.accuracy:.4f}")
    if ablation:
        print_rows([_ablation_cells(row) for row in ablation])
    if figures:
        print_rows([_selective_cells(figure) for figure in figures])


def _evaluation_json(
    evaluation: OODEvaluation, ablation: Sequence[AblationRow], figures: Sequence[SelectiveFigures]
) -> dict[str, object]:
    seconds = evaluation.inliers.seconds
    return {
        "classifier": evaluation.classifier,
        "accuracy": evaluation.accuracy,
        "comparisons": [asdict(row) for row in evaluation.comparisons],
        "trivial": evaluation.trivial,
        "warnings": list(evaluation.warnings),
        "left_out": evaluation.left_out,
        "detectors": evaluation.facts,
        "seconds_an_image": {name: value / len(evaluation.inliers) for name, value in seconds.items()},
        "ablation": [asdict(row) for row in ablation],
        "reliability": [_selective(figure) for figure in figures],
    }


def _ablation_cells(row: AblationRow) -> dict[str, object]:
    low, high = row.interval
    return {"variant": row.variant, "part": row.part, "AUROC": f"{row.auroc:.4f}", "95 %": f"{low:.4f} to {high:.4f}"}


def _selective(figures: SelectiveFigures) -> dict[str, object]:
    return {
        field.name: getattr(figures, field.name)
        for field in fields(figures)
        if field.name not in ("curve", "scores", "wrong")
    }


def _selective_cells(figures: SelectiveFigures) -> dict[str, object]:
    return {key: f"{value:.4f}" if isinstance(value, float) else value for key, value in _selective(figures).items()}


def _accuracy(figures: Sequence[SelectiveFigures]) -> float:
    return float(1 - figures[0].wrong.mean())


def _write_report(  # noqa: PLR0917
    path: Path,
    say: Speaker,
    title: str,
    evaluation: OODEvaluation | None,
    tunings: Sequence[Tuning],
    ablation: Sequence[AblationRow],
    figures: Sequence[SelectiveFigures],
) -> None:
    from ..report.ood import write_ood_report

    write_ood_report(path, title=title, evaluation=evaluation, tunings=tunings, ablation=ablation, reliability=figures)
    say.line(f"Report: {path}")
