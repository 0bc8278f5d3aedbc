"""From a fitted detector to a file for another program, and the program beside it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..datasets.layouts import normal_images
from ..errors import ArgumentError, NotFittedError, OutputError
from ..features.onnx_graph import require_packages
from ..features.runtime import import_openvino
from ..files import check_output, write_whole
from ..images.source import ImageInput
from ..progress import Progress
from .as_torch import build_program, saved
from .parity import Parity, check_first, check_parity
from .runs import OnOnnxruntime, OnOpenvino, OnTorch, Run
from .trace import layers_of, require_onnx, require_programs
from .whole import CARD, build, card, check_exportable

if TYPE_CHECKING:
    from ..detector import Detector

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Of the files."""
Write = Callable[[Path, str], object]
"""Writes a file, with this card in it."""
RUN = "run.py"
"""The name of the program beside the file."""
_log = logging.getLogger("blemish")


@dataclass(frozen=True)
class Exported:
    """What came into being."""

    path: Path
    run: Path
    bytes: int
    parity: Parity


def export_model(
    detector: Detector,
    path: str | Path,
    *,
    format: Format = "onnx",
    images: ImageInput | None = None,
    model: str | Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a detector as an ONNX file, and beside it `run.py`, which judges pictures without torch and blemish.

    With `format="openvino"` it is OpenVINO's own: `path`, which ends in `.xml`, and a `.bin` beside it. With
    `format="torch"` it is a program of `torch.export`, `path` ends in `.pt2`, and `run.py` needs torch.

    Before that, `images` (of a data set its normal ones; None: eight drawn pictures) are judged both ways. `model` is
    the file that the detector was loaded from, whose digest the card will hold. Raises `ExportError` where the file
    would say something else, `ArgumentError` where the method cannot be exported, `MissingPackageError`,
    `NotFittedError` and `OutputError`.
    """
    path = Path(path)
    check_places(path)
    (require_programs if format == "torch" else require_onnx)()
    if path.suffix != SUFFIXES[format] and format != "onnx":
        raise ArgumentError.about(
            "path", expected=f"a file that ends in {SUFFIXES[format]}, for {format}", got=path.name
        )
    if format == "openvino":
        require_packages(("openvino",), of="export", extra="openvino")
        check_output(path.with_suffix(".bin"))
    if not detector.images_:
        raise NotFittedError("export_model needs a fitted detector. Call fit(normal_images) first.")
    check_exportable(detector)
    source = None if images is None else normal_images(images, max_pixels=detector.max_pixels)
    if source is not None:
        check_first(source)
    run, write = _build(detector, format)
    layers = partial(layers_of, detector)
    parity = check_parity(detector, run, source, layers=layers, path=str(path), progress=progress)
    known = card(detector, model, *() if format == "torch" else ("onnx",))
    return finish(write, path, parity, card=known)


def _build(detector: Detector, format: Format) -> tuple[Run, Write]:
    """What runs the file, and what writes it."""
    if format == "torch":
        program = build_program(detector)
        return OnTorch(saved(program, "")), lambda path, card: write_whole(path, saved(program, card))
    built = build(detector)
    if format == "onnx":
        return OnOnnxruntime(built), partial(write_onnx, built)
    model = import_openvino().Core().read_model(built.SerializeToString())
    return OnOpenvino(model), partial(_write_openvino, model)


def check_places(path: Path) -> None:
    """Refuse, before the work, what cannot be written."""
    check_output(path)
    _check_program(path.with_name(RUN))


def finish(write: Write, path: Path, parity: Parity, *, card: dict[str, Any]) -> Exported:
    """Write what was compared, with its card, and the program beside it."""
    write(path, json.dumps(card | {"parity": asdict(parity)}))
    program = path.with_name(RUN)
    write_whole(program, _program())
    if parity.drawn:
        _log.info("compared on drawn pictures alone: give the normal images too, to compare near the threshold.")
    return Exported(path, program, path.stat().st_size, parity)


def write_onnx(built: Any, path: Path, card: str) -> None:
    """One file of an `onnx.ModelProto`."""
    from onnx import helper

    helper.set_model_props(built, {CARD: card})
    write_whole(path, built.SerializeToString())


def _write_openvino(model: Any, path: Path, card: str) -> None:
    """Two files: the graph, with the card in it, and its numbers."""
    model.set_rt_info(card, [CARD])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, path.name)
        import_openvino().save_model(model, made, compress_to_fp16=False)
        for part in (made.with_suffix(".bin"), made):  # the graph last: it names the other
            write_whole(path.with_name(part.name), part.read_bytes())


def _program() -> str:
    return Path(__file__).with_name(RUN).read_text(encoding="utf-8")


def _check_program(path: Path) -> None:
    """Refuse to replace a program of somebody else's."""
    check_output(path)
    first = _program().splitlines()[0]
    if path.exists() and path.read_text(encoding="utf-8", errors="replace").splitlines()[:1] != [first]:
        raise OutputError(f"{path}: is there already, and none of ours. Choose another folder for the exported file.")
