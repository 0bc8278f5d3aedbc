"""`blemish fit` and what changes a model afterwards, on the command line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import ArgumentError
from ..files import check_output, make_folder, naming
from ..parameters import parameters_of, read_texts, split_settings
from . import options
from .console import Speaker, print_evaluation, print_fit
from .models import Subfolders, changes_a_model, load_model, normal_source
from .options import read_names, read_option, read_resize, read_size, read_white_level, spelled_out

if TYPE_CHECKING:
    from ..presets import Preset


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for images, model and report.")] = Path("demo"),
    product: Annotated[
        str, typer.Option(help="weave, brushed, leather, terrazzo, washer, capsule, board or cork.")
    ] = "board",
    images: Annotated[int, typer.Option(min=95, help="Normal images to draw for learning.")] = 120,
    seed: Annotated[int, typer.Option(help="Another seed draws other parts.")] = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Draw a product with defects, learn its normal look, evaluate, and write a report. Needs no data, no network."""
    from ..datasets.layouts import open_dataset
    from ..datasets.synthetic import check_product, write_dataset
    from ..detector import Detector
    from ..evaluation.detector import evaluate
    from ..report.evaluation import write_report
    from ..report.facts import facts

    say = Speaker()
    check_product(product)  # it becomes a part of a path
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


@dataclass(frozen=True)
class MethodOptions:
    """Which method, with which parameters."""

    method: Annotated[
        str | None, typer.Option(help="See `blemish list methods`; or auto: let the images choose. Default: patchcore.")
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(help="See `blemish list backbones`; or timm:NAME. Default: compact, which ships with us."),
    ] = None
    weights: options.WeightsOption = None
    taps: Annotated[str | None, typer.Option(help="Layers to read, comma-separated, such as layer2,layer3.")] = None
    set_: options.SetOption = None
    index: Annotated[
        str | None, typer.Option(help="What searches the bank: exact, or faiss:ivf256, faiss:hnsw32, faiss:pq16 ...")
    ] = None
    memory: options.MemoryOption = None
    keep: Annotated[
        Literal["factor", "sums"] | None,
        typer.Option(help="padim, gaussian: sums keeps what `blemish forget` needs; a larger file."),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        typer.Option(help="Of the network. int8 takes another runtime than torch; see docs/runtimes.md."),
    ] = None
    seed: options.SeedOption = 0
    device: options.DeviceOption = "auto"

    def make(self, preset: Preset) -> Any:
        """The method with the parameters of the preset, of --set, and of the options that were given."""
        from ..features.weights import check_weights

        check_weights(self.weights)
        options = {
            "backbone": self.backbone,
            "weights": self.weights,
            "taps": None if self.taps is None else read_option("--taps", tuple[str, ...], self.taps),
            "index": self.index,
            "memory_gb": self.memory,
            "keep": self.keep,
            "seed": self.seed,
            "device": self.device,
        } | ({} if self.precision is None else {"precision": self.precision})
        return _make_method(preset, self.method, self.set_ or [], options)


@dataclass(frozen=True)
class InputOptions:
    """What becomes of a picture before it is learned."""

    preset: Annotated[str, typer.Option(help="What goes together; see `blemish list presets`.")] = "default"
    resize: Annotated[
        str | None,
        typer.Option(
            help="Size of the network's input, instead of the preset's: SIDE, HEIGHTxWIDTH, or auto: the images' own "
            "aspect ratio at the area of 256 x 256; auto:512: of 512 x 512."
        ),
    ] = None
    white_level: options.WhiteLevelOption = None
    max_pixels: options.MaxPixelsOption = None


@dataclass(frozen=True)
class LearnOptions(options.SplitOptions):
    """What a detector takes beside its method and its input, as `Detector` names it."""

    tile: Annotated[str | None, typer.Option(help="Learn and score large inputs in tiles of SIDE or HEIGHTxWIDTH.")] = (
        None
    )
    overlap: Annotated[
        int | None, typer.Option(help="Least overlap of tiles; default: a quarter of the shorter side.")
    ] = None
    calibration: Annotated[
        Literal["split", "cross", "loo", "full", "none"] | None,
        typer.Option(
            help="split: hold out normals for the threshold. loo: learn all, and score each by the model without it. "
            "cross: a model for each of several folds. full: judge each image as one of the normal ones. none: raw "
            "scores only. See docs/decisions.md."
        ),
    ] = None
    folds: Annotated[int, typer.Option(help="With --calibration cross: how many.")] = 10
    part_by: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Several images of one part get one verdict: a regular expression on the path; its first group names "
            "the part and its second, where there is one, the view.",
        ),
    ] = None
    min_area: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="Report no regions of fewer pixels of the picture.")
    ] = 1
    runtime: Annotated[
        Literal["auto", "torch", "onnxruntime", "openvino"],
        typer.Option(help="What runs the network: auto measures those at hand. Kept in the model file."),
    ] = "torch"
    batch_size: options.BatchOption = 8

    def settings(self, preset: Preset) -> dict[str, Any]:
        """For `Detector`."""
        tile = None if self.tile is None else read_size(self.tile, of="--tile")
        return vars(self) | {"tile": tile, "calibration": self.calibration or preset.calibration}


@spelled_out
def fit(
    data: options.DataArgument,
    *,
    folders: Subfolders,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.blemish"),
    learner: MethodOptions,
    image: InputOptions,
    learning: LearnOptions,
    exclude: options.ExcludeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Learn what normal looks like, and write one model file.

    Example: blemish fit bottle --backbone wide_resnet50_2 --set storage=float16 --out bottle.blemish
    """
    from ..detector import Detector
    from ..presets import find_preset

    say = Speaker()
    check_output(out)
    preset = find_preset(image.preset)
    preprocess = replace(preset.resized(read_resize(image.resize)), white_level=read_white_level(image.white_level))
    method, settings = learner.make(preset), learning.settings(preset)
    detector = Detector(method=method, preprocess=preprocess, seed=learner.seed, **settings)
    detector.max_pixels = image.max_pixels or detector.max_pixels
    source, taken = normal_source(data, say, max_pixels=detector.max_pixels, folders=folders)
    left_out = () if exclude is None else read_names(exclude)
    start = time.perf_counter()
    with say.progress() as progress:
        detector.fit(source, exclude=left_out, progress=progress)
    detector.save(out)
    print_fit(detector, out, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector.skipped_)


@changes_a_model
def update(
    model: options.ModelArgument,
    new_normals: Annotated[Path, typer.Argument(help="Folder of further normal images.")],
    *,
    held_out: Annotated[Path | None, typer.Option(help="Folder of normal images for a new threshold.")] = None,
    out: options.ChangedOption = None,
    memory: options.MemoryOption = None,
    roi: options.RoiOption = None,
    device: options.DeviceOption = "auto",
    on_error: options.ErrorOption = "raise",
    as_json: options.JsonOption = False,
) -> None:
    """Add normal images to a model without a refit. The old threshold is dropped unless new --held-out images come."""
    from ..images.decode import MAX_PIXELS

    say = Speaker()
    start = time.perf_counter()
    source, taken = normal_source(new_normals, say, max_pixels=MAX_PIXELS)
    held_out_source = (
        None if held_out is None else normal_source(held_out, say, max_pixels=MAX_PIXELS, use="for the threshold")[0]
    )
    detector = load_model(model, device, roi)
    detector.on_error = on_error
    if memory is not None:
        parameters_of(type(detector.method_))["memory_gb"].check(memory, of="--memory: ")
        detector.method_.set_params(memory_gb=memory)
    with say.progress() as progress:
        detector.update(source, held_out=held_out_source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector.skipped_)


@changes_a_model
def recalibrate(
    model: options.ModelArgument,
    images: Annotated[
        Path | None, typer.Argument(help="Folder of normal images that were not learned; none: only another rate.")
    ] = None,
    *,
    false_alarm_rate: Annotated[float | None, typer.Option(help="Another one; default: the model's.")] = None,
    certain: options.CertainOption = None,
    group_by: options.GroupByOption = None,
    out: options.ChangedOption = None,
    roi: options.RoiOption = None,
    device: options.DeviceOption = "auto",
    runtime: options.RuntimeOption = None,
    on_error: options.ErrorOption = "raise",
    as_json: options.JsonOption = False,
) -> None:
    """Make a new threshold from new normal images, or for another rate; nothing is learned.

    For a model that is still right while lamp, lens or material have drifted: all images of a shift, or a random
    sample of them, never a choice by score.

    Example: blemish recalibrate bottle.blemish this_week --false-alarm-rate 0.02
    """
    from ..images.decode import MAX_PIXELS

    say = Speaker()
    start = time.perf_counter()
    if images is None and false_alarm_rate is None and certain is None:
        raise ArgumentError.about("IMAGES", expected="normal images, or --false-alarm-rate", got="neither")
    taken: dict[str, object] | None = None
    source = None
    if images is not None:
        source, taken = normal_source(images, say, max_pixels=MAX_PIXELS, use="for the threshold")
    detector = load_model(model, device, roi, runtime=runtime)
    detector.on_error, detector.group_by = on_error, group_by
    with say.progress() as progress:
        detector.recalibrate(false_alarm_rate, certain=certain, images=source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"data": taken})
    say.skipped(detector.skipped_)


@changes_a_model
def forget(
    model: options.ModelArgument,
    images: Annotated[Path, typer.Argument(help="Image file or folder of images of the fit.")],
    *,
    out: options.ChangedOption = None,
    roi: options.RoiOption = None,
    device: options.DeviceOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Unlearn images, as if they had never been there: exact, or refused. The threshold is dropped.

    They are known by their pictures, so give the files; those held out may be among them. padim and gaussian need
    `fit --keep sums`.

    Example: blemish fit bottle --method padim --keep sums; blemish forget model.blemish bottle/train/good/007.png
    """
    from ..images.source import as_source

    say = Speaker()
    start = time.perf_counter()
    source = as_source(images)
    detector = load_model(model, device, roi)
    say.line(f"{images}: {len(source)} images to forget")
    with say.progress() as progress:
        detector.forget(source, progress=progress)
    detector.save(out or model)
    print_fit(detector, out or model, time.perf_counter() - start, as_json, extra={"forgotten": len(source)})


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
