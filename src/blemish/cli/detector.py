"""`blemish fit`, `predict` and what goes with them, on the command line."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArgumentError, ImageError
from ..files import check_output, make_folder, naming
from ..parameters import parameters_of, read_texts, split_settings
from .console import Speaker, print_evaluation, print_fit, print_rows
from .options import (
    BatchOption,
    CertainOption,
    DeviceOption,
    ErrorOption,
    FdrOption,
    JsonOption,
    LearnedRoiOption,
    MaxPixelsOption,
    MemoryOption,
    RateOption,
    ReportOption,
    RuntimeOption,
    SeedOption,
    SetOption,
    WhiteLevelOption,
    WorkersOption,
    check_share,
    read_names,
    read_option,
    read_resize,
    read_size,
    read_white_level,
)  # fmt: skip
from .results import ResultWriter

if TYPE_CHECKING:
    from ..detector import Detector
    from ..features.runtime import RuntimeChoice
    from ..presets import Preset
    from ..types import Decision, PartDecision

NormalOption = Annotated[
    list[str] | None, typer.Option("--normal", metavar="SUB", help="Sub-folder of normal images; repeatable.")
]
AnomalousOption = Annotated[
    list[str] | None, typer.Option("--anomalous", metavar="SUB", help="Sub-folder of images with defects; repeatable.")
]
MasksOption = Annotated[
    str | None,
    typer.Option("--masks", metavar="SUB", help="Sub-folder of masks, SUB/KIND/IMAGE.png."),
]
RoiOption = Annotated[
    Path | None,
    typer.Option("--roi", metavar="FOLDER", help="Regions for each image, where the model was fitted with such ones."),
]
ModelArgument = Annotated[Path, typer.Argument(help="Model file written by `blemish fit`.")]


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for images, model and report.")] = Path("demo"),
    product: Annotated[
        str, typer.Option(help="weave, brushed, leather, terrazzo, washer, capsule, board or cork.")
    ] = "board",
    images: Annotated[int, typer.Option(min=95, help="Normal images to draw for learning.")] = 120,
    seed: Annotated[int, typer.Option(help="Another seed draws other parts.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a product with defects, learn its normal look, evaluate, and write a report. Needs no data, no network."""
    from ..datasets.layouts import open_dataset
    from ..datasets.synthetic import write_dataset
    from ..detector import Detector
    from ..evaluation.detector import evaluate
    from ..report.evaluation import write_report
    from ..report.facts import facts

    say = Speaker()
    make_folder(out)
    for name in ("demo.blemish", "report.html"):
        check_output(out / name)
    say.line(f"drawing a synthetic {product} line in {out / 'data'} ...")
    folder = out / "data" / f"{product}-{images}-{seed}"
    if not folder.exists():  # the same name means the same pictures
        unfinished = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_dataset(unfinished, product=product, seed=seed, n_train=images)
        with naming(folder):
            unfinished.rename(folder)
    dataset = open_dataset(folder)
    detector = Detector(seed=seed)
    with say.progress() as progress:
        detector.fit(dataset.train_images(), progress=progress)
        evaluation = evaluate(detector, dataset, progress=progress)
    detector.save(out / "demo.blemish")
    page = write_report(evaluation, out / "report.html", title=f"Synthetic {product}", facts=facts(detector))
    print_evaluation(evaluation, as_json, extra={"report": str(page)})
    say.line(f"Model: {out / 'demo.blemish'}\nReport: {page}")


def fit(
    data: Annotated[Path, typer.Argument(help="Dataset folder (train/good ...), or any folder of normal images.")],
    *,
    normal: NormalOption = None,
    anomalous: AnomalousOption = None,
    masks: MasksOption = None,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.blemish"),
    method: Annotated[
        str | None, typer.Option(help="See `blemish list methods`; or auto: let the images choose. Default: patchcore.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="See `blemish list backbones`; or timm:NAME. Default: compact, which ships with us."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="File, or random; else $BLEMISH_WEIGHTS, then hub.")] = None,
    taps: Annotated[str | None, typer.Option(help="Layers to read, comma-separated, such as layer2,layer3.")] = None,
    set_: SetOption = None,
    preset: Annotated[str, typer.Option(help="What goes together; see `blemish list presets`.")] = "default",
    resize: Annotated[
        str | None,
        typer.Option(
            help="Size of the network's input, instead of the preset's: SIDE, HEIGHTxWIDTH, or auto: the images' own "
            "aspect ratio at the area of 256 x 256; auto:512: of 512 x 512."
        ),
    ] = None,
    white_level: WhiteLevelOption = None,
    max_pixels: MaxPixelsOption = None,
    tile: Annotated[
        str | None, typer.Option(help="Learn and score large inputs in tiles of SIDE or HEIGHTxWIDTH.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Least overlap of tiles; default: a quarter of the shorter side.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="What searches the bank: exact, or faiss:ivf256, faiss:hnsw32, faiss:pq16 ...")
    ] = None,
    memory: MemoryOption = None,
    keep: Annotated[
        Literal["factor", "sums"] | None,
        typer.Option(help="padim, gaussian: sums keeps what `blemish forget` needs; a larger file."),
    ] = None,
    calibration: Annotated[
        Literal["split", "cross", "loo", "full", "none"] | None,
        typer.Option(
            help="split: hold out normals for the threshold. loo: learn all, and score each by the model without it. "
            "cross: a model for each of several folds. full: judge each image as one of the normal ones. none: raw "
            "scores only. See docs/decisions.md."
        ),
    ] = None,
    folds: Annotated[int, typer.Option(help="With --calibration cross: how many.")] = 10,
    false_alarm_rate: RateOption = 0.05,
    certain: CertainOption = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Share of the normal images held out for the threshold. Default: a fifth, or what it takes."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN", help="Keep bursts or parts together: a regular expression whose first group names them."
        ),
    ] = None,
    part_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Several images of one part get one verdict: a regular expression on the path; its first group names "
            "the part and whose second, where there is one, the view.",
        ),
    ] = None,
    min_area: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="Report no regions of fewer pixels of the picture.")
    ] = 1,
    roi: LearnedRoiOption = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Text file of images that are not normal, such as `blemish inspect --out`'s.")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    runtime: Annotated[
        Literal["auto", "torch", "onnxruntime", "openvino"],
        typer.Option(help="What runs the network: auto measures those at hand. Kept in the model file."),
    ] = "torch",
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        typer.Option(help="Of the network. int8 takes another runtime than torch; see docs/runtimes.md."),
    ] = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = 2,
    on_error: ErrorOption = "raise",
    as_json: JsonOption = False,
) -> None:
    """Learn what normal looks like, and write one model file.

    Example: blemish fit bottle --backbone wide_resnet50_2 --set storage=float16 --out bottle.blemish
    """
    from ..detector import Detector
    from ..presets import find_preset

    say = Speaker()
    check_output(out)
    chosen = find_preset(preset)
    options = {
        "backbone": backbone,
        "weights": weights,
        "taps": None if taps is None else read_option("--taps", tuple[str, ...], taps),
        "index": index,
        "memory_gb": memory,
        "keep": keep,
        "seed": seed,
        "device": device,
    } | ({} if precision is None else {"precision": precision})
    detector = Detector(
        method=_make_method(chosen, method, set_ or [], options),
        preprocess=replace(chosen.resized(read_resize(resize)), white_level=read_white_level(white_level)),
        tile=None if tile is None else read_size(tile, of="--tile"),
        overlap=overlap,
        calibration=calibration or chosen.calibration,
        folds=folds,
        held_out=held_out,
        false_alarm_rate=false_alarm_rate,
        certain=certain,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        group_by=group_by,
        part_by=part_by,
        min_area=min_area,
        roi=roi,
        runtime=runtime,
    )
    detector.max_pixels = max_pixels or detector.max_pixels
    source, taken = _normal_source(
        data, say, max_pixels=detector.max_pixels, normal=normal or (), anomalous=anomalous or (), masks=masks
    )
    left_out = () if exclude is None else read_names(exclude)
    start = time.perf_counter()
    with say.progress() as progress:
        detector.fit(source, exclude=left_out, progress=progress)
    detector.save(out)
    print_fit(detector, out, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector)


def update(
    model: ModelArgument,
    new_normals: Annotated[Path, typer.Argument(help="Folder of further normal images.")],
    *,
    held_out: Annotated[Path | None, typer.Option(help="Folder of normal images for a new threshold.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: replace the model.")] = None,
    memory: MemoryOption = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    on_error: ErrorOption = "raise",
    as_json: JsonOption = False,
) -> None:
    """Add normal images to a model without a refit. The old threshold is dropped unless new --held-out images come."""
    say = Speaker()
    check_output(out or model)
    start = time.perf_counter()
    detector = load_model(model, device, roi)
    detector.on_error = on_error
    if memory is not None:
        parameters_of(type(detector.method_))["memory_gb"].check(memory, of="--memory: ")
        detector.method_.set_params(memory_gb=memory)
    limit = detector.max_pixels
    source, taken = _normal_source(new_normals, say, max_pixels=limit)
    held_out_source = None if held_out is None else _normal_source(held_out, say, max_pixels=limit)[0]
    with say.progress() as progress:
        detector.update(source, held_out=held_out_source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector)


def recalibrate(
    model: ModelArgument,
    images: Annotated[
        Path | None, typer.Argument(help="Folder of normal images that were not learned; none: only another rate.")
    ] = None,
    *,
    false_alarm_rate: Annotated[float | None, typer.Option(help="Another one; default: the model's.")] = None,
    certain: CertainOption = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Keep bursts or parts together, as in `blemish fit`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: replace the model.")] = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    on_error: ErrorOption = "raise",
    as_json: JsonOption = False,
) -> None:
    """Make a new threshold from new normal images, or for another rate; nothing is learned.

    For a model that is still right while lamp, lens or material have drifted: all images of a shift, or a random
    sample of them, never a choice by score.

    Example: blemish recalibrate bottle.blemish this_week --false-alarm-rate 0.02
    """
    say = Speaker()
    check_output(out or model)
    start = time.perf_counter()
    detector = load_model(model, device, roi, runtime=runtime)
    detector.on_error, detector.group_by = on_error, group_by
    if images is None and false_alarm_rate is None and certain is None:
        raise ArgumentError.about("IMAGES", expected="normal images, or --false-alarm-rate", got="neither")
    taken: dict[str, object] | None = None
    source = None
    if images is not None:
        source, taken = _normal_source(images, say, max_pixels=detector.max_pixels)
    with say.progress() as progress:
        detector.recalibrate(false_alarm_rate, certain=certain, images=source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector)


def forget(
    model: ModelArgument,
    images: Annotated[Path, typer.Argument(help="Image file or folder of images that were learned.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: replace the model.")] = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Unlearn images, as if they had never been there: exact, or refused. The threshold is dropped.

    They are known by their pictures, so give the files that were learned. padim and gaussian need `fit --keep sums`.

    Example: blemish fit bottle --method padim --keep sums; blemish forget model.blemish bottle/train/good/007.png
    """
    from ..images.source import as_source

    say = Speaker()
    check_output(out or model)
    start = time.perf_counter()
    detector = load_model(model, device, roi)
    source = as_source(images, max_pixels=detector.max_pixels)
    say.line(f"{images}: {len(source)} images to forget")
    with say.progress() as progress:
        detector.forget(source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"forgotten": len(source)})


def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and heat maps; default: stdout.")] = None,
    heatmaps: Annotated[
        Literal["png", "npy", "none"], typer.Option(help="With --out. png: the threshold is the middle of the scale.")
    ] = "png",
    overlays: Annotated[
        bool, typer.Option("--overlays", help="With --out: also each picture that has regions, with their contours.")
    ] = False,
    coco: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the regions of all images as COCO JSON here.")
    ] = None,
    fdr: FdrOption = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    batch_size: BatchOption = 16,
    workers: WorkersOption = 2,
    max_pixels: MaxPixelsOption = None,
    on_error: ErrorOption = "skip",
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 3 where an image is anomalous, with 4 where one has no verdict."),
    ] = False,
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
    from ..images.source import from_paths

    say = Speaker()
    detector = load_model(model, device, roi, runtime=runtime)
    if exit_code and detector.calibration_ is None:
        raise ArgumentError.about("--exit-code", expected="a model with a threshold", got=f"{model}, which has none")
    _check_regions(detector, model, say, {"--overlays": overlays, "--coco": coco is not None})
    if overlays and out is None:
        raise ArgumentError.about("--overlays", expected="a folder for them, --out FOLDER", got="none")
    check_share("--fdr", fdr)
    if fdr is not None:
        detector.choose_alarms([], fdr)  # refuses what cannot be promised
    detector.batch_size, detector.workers, detector.on_error = batch_size, workers, on_error
    detector.max_pixels = max_pixels or detector.max_pixels
    paths = [path for path in image_paths(images, say) if out is None or out.resolve() not in path.resolve().parents]
    writer = ResultWriter(out, heatmaps, model=model, overlays=overlays, coco=coco)
    left = writer.left(paths)
    if len(left) < len(paths):
        say.line(f"{len(paths) - len(left)} of {len(paths)} images were judged by an earlier run; their lines stay.")
    wants_all = detector.parts_ is not None or fdr is not None
    decisions = writer.earlier() if wants_all else []
    with writer, say.progress() as progress:
        source = replace(from_paths(left, max_pixels=detector.max_pixels), root=_root(images))
        wanted = out is not None and (heatmaps != "none" or overlays)
        for decision in detector.predict(source, maps=wanted, progress=progress) if left else ():
            writer.write(decision)
            if wants_all:
                decisions.append(replace(decision, map=None, regions=None))
        writer.write_skipped(detector.skipped_)
        writer.write_coco()
        _judge_together(detector, decisions, writer, say, fdr=fdr, root=_root(images))
    say.skipped(detector)
    if out is not None:
        say.line(f"{len(paths) - len(detector.skipped_)} images: {out / 'results.jsonl'}")
    if out is not None and detector.parts_ is not None:
        say.line(f"Parts: {out / 'parts.jsonl'}")
    if exit_code:
        raise typer.Exit({"normal": 0, "anomalous": 3, "not judged": 4}[writer.verdict()])


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


def evaluate_model(
    model: ModelArgument,
    data: Annotated[Path, typer.Argument(help="Dataset folder with labelled test images.")],
    *,
    normal: NormalOption = None,
    anomalous: AnomalousOption = None,
    masks: MasksOption = None,
    report: ReportOption = None,
    pixels: Annotated[
        Literal["original", "network"] | None,
        typer.Option(help="Pixel figures on the original pixels, or on the network's input."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add 95 % intervals of every figure (slower).")
    ] = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on at test images that were learned from, and mark the figures.")
    ] = False,
    fdr: FdrOption = None,
    roi: RoiOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = None,
    batch_size: BatchOption = 16,
    workers: WorkersOption = 2,
    max_pixels: MaxPixelsOption = None,
    on_error: ErrorOption = "raise",
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled images: AUROC, AU-PRO, F1 at the threshold that was fixed before, and more."""
    from ..datasets.layouts import open_dataset
    from ..datasets.taken import take
    from ..evaluation.detector import evaluate

    say = Speaker()
    if report is not None:
        check_output(report)
    check_share("--fdr", fdr)
    dataset = open_dataset(data, normal=normal or (), anomalous=anomalous or (), masks=masks)
    taken = take(dataset)
    say.lines(taken.lines())
    detector = load_model(model, device, roi, runtime=runtime)
    detector.batch_size, detector.workers, detector.on_error = batch_size, workers, on_error
    detector.max_pixels = max_pixels or detector.max_pixels
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
    say.skipped(detector)


def list_(
    table: Annotated[
        Literal["methods", "presets", "backbones", "detectors", "datasets"], typer.Argument(help="Which table.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what there is to choose from."""
    rows: list[dict[str, object]]
    if table == "methods":
        from ..methods import Incremental
        from ..methods.registry import METHODS

        rows = [
            {
                "name": name,
                "what": (method.__doc__ or "").splitlines()[0],
                "update": issubclass(method, Incremental),
                "parameters": _parameters(method, as_json),
            }
            for name, method in METHODS.items()
        ]
    elif table == "presets":
        from ..presets import PRESETS

        rows = [row.as_row(name) for name, row in PRESETS.items()]
    elif table == "backbones":
        rows = _backbones(short=not as_json)
    elif table == "detectors":
        from ..ood import DETECTORS

        rows = [
            {
                "name": name,
                "what": (detector.__doc__ or "").splitlines()[0],
                "learns": detector.learns,
                "needs": sorted(detector.needs),
                "parameters": _parameters(detector, as_json),
            }
            for name, detector in DETECTORS.items()
        ]
    else:
        from ..datasets.layouts import LAYOUTS

        rows = [{"name": layout.name, "layout": layout.description} for layout in LAYOUTS]
    if as_json:
        typer.echo(json.dumps({table: rows}))
    else:
        print_rows(rows)


def _backbones(*, short: bool) -> list[dict[str, object]]:
    """What is known of each row; `short`: what fits on one line of a terminal."""
    from ..features.backbones import BACKBONES
    from ..features.costs import table_costs

    costs = table_costs()
    rows: list[dict[str, object]] = []
    for row in BACKBONES.values():
        cost = costs.get(row.name)  # None for a new row, until `python -m blemish.features.costs` has run
        figures: dict[str, object] = {
            "name": row.name,
            "strides": list(row.strides),
            "dim": sum(row.channels),
            "d": row.d,
            "parameters": cost and (f"{cost.parameters / 1e6:.2f} M" if short else cost.parameters),
            "multiply_adds": cost and (f"{cost.multiply_adds / 1e9:.2f} G" if short else cost.multiply_adds),
            "licence": row.licence.partition(";")[0] if short else row.licence,
        }
        more = {"taps": list(row.taps), "channels": list(row.channels), "weights": row.source or "none needed"}
        rows.append(figures if short else figures | more)
    return rows


def _check_regions(detector: Detector, model: Path, say: Speaker, wanted: Mapping[str, bool]) -> None:
    """Say where a calibrated model has no regions; refuse the options that want some."""
    if detector.peaks_ is not None:
        return
    why = (
        "it keeps no peaks of held-out maps. Its method has no maps, its calibration is full, or it is older than "
        "regions, or with cross than those of folds (fit again)."
    )
    for option in (option for option, is_wanted in wanted.items() if is_wanted):
        raise ArgumentError.about(option, expected="a model with regions", got=f"{model}: {why}")
    if detector.calibration_ is not None:
        say.line(f"No regions from {model}: {why}")


def load_model(model: Path, device: str, roi: Path | None = None, *, runtime: RuntimeChoice | None = None) -> Any:
    """The detector of a model file; `roi` are regions for each image, where it was fitted with such ones."""
    from ..detector import Detector
    from ..edges.faiss import index_from_name

    detector = Detector.load(model, device=device, make_index=index_from_name, runtime=runtime)
    if roi is not None and (detector.region_ is None or detector.region_.is_one):
        kept = "no region" if detector.region_ is None else "its own"
        raise ArgumentError.about("--roi", expected=f"none, as the model has {kept}", got=roi)
    detector.roi = roi
    return detector


def _normal_source(
    data: Path,
    say: Speaker,
    *,
    max_pixels: int,
    normal: Sequence[str] = (),
    anomalous: Sequence[str] = (),
    masks: str | None = None,
) -> tuple[Any, dict[str, object]]:
    """Normal images to learn from, and what was taken as JSON; says the same on stderr."""
    from ..datasets.layouts import OneClass, open_dataset
    from ..datasets.taken import take
    from ..images.source import as_source

    if os.path.isdir(data) or OneClass.spelled(data) or normal or anomalous or masks:
        dataset = open_dataset(data, normal=normal, anomalous=anomalous, masks=masks)
        taken = take(dataset)
        say.lines(taken.lines())
        return dataset.train_images(max_pixels=max_pixels), taken.as_json()
    source = as_source(data, max_pixels=max_pixels)
    say.line(f"{data}: {len(source)} images, normal, to learn from")
    return source, {"root": str(data), "images": len(source)}


def _root(images: list[Path]) -> Path | None:
    """The folder below which images have their paths."""
    return images[0] if len(images) == 1 and images[0].is_dir() else None


def image_paths(images: list[Path], say: Speaker) -> list[Path]:
    from ..datasets.layouts import open_to_judge
    from ..datasets.taken import take

    paths: list[Path] = []
    for image in images:
        if not os.path.exists(image):
            raise ImageError(f"{image}: the file does not exist.")
        if not image.is_dir():
            paths.append(image)
            continue
        dataset = open_to_judge(image)
        say.lines(take(dataset).lines())
        paths += [sample.path for sample in dataset.test]
        say.line(f"  judged: {len(dataset.test)} images" + (" of the test part" if dataset.train else ""))
    if not paths:
        raise ArgumentError.about("IMAGES", expected="image files or folders", got=", ".join(map(str, images)))
    return paths


def _make_method(preset: Preset, name: str | None, settings: list[str], options: Mapping[str, Any]) -> Any:
    """The method with the parameters of the preset, of --set, and of the options that were given."""
    from ..edges.faiss import index_from_name

    kind, values = preset.choose(name)
    known = parameters_of(kind)
    texts = split_settings(settings, of="--set")
    for key in texts:
        if key in options:
            instead = f"Use --{key.split('_')[0]}."
            raise ArgumentError.about("--set", expected="no parameter that has an option", got=key, instead=instead)
    values |= read_texts(kind, texts, of="--set", without=[key for key, p in known.items() if p.option])
    for key, value in options.items():
        if value is not None:
            if key not in known:
                others = ", ".join(f"--{other.split('_')[0]}" for other in options if other in known)
                expected = f"an option that {kind.name} knows ({others})"
                raise ArgumentError.about("--method", expected=expected, got=f"--{key.split('_')[0]}")
            values[key] = index_from_name(value) if key == "index" else value
    return kind(**values)


def _parameters(kind: type, as_json: bool) -> object:
    """All that is known of each, or names and defaults, which fit into a table."""
    known = parameters_of(kind).values()
    return [p.as_json() for p in known] if as_json else {p.name: p.default for p in known}
