"""From a fitted detector to a file for another program, and the program beside it."""

from __future__ import annotations

import json
import logging
import tempfile
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
from .parity import Parity, check_first, check_parity, on_openvino
from .trace import layers_of, require_onnx
from .whole import CARD, build

if TYPE_CHECKING:
    from ..detector import Detector

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
    format: Literal["onnx", "openvino"] = "onnx",
    images: ImageInput | None = None,
    model: str | Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a detector as an ONNX file, and beside it `run.py`, which judges pictures without torch and blemish.

    With `format="openvino"` it is OpenVINO's own: `path`, which ends in `.xml`, and a `.bin` beside it.

    Before that, `images` (of a data set its normal ones; None: eight drawn pictures) are judged both ways. `model` is
    the file that the detector was loaded from, whose digest the card will hold. Raises `ExportError` where the file
    would say something else, `ArgumentError` where the method cannot be exported, `MissingPackageError`,
    `NotFittedError` and `OutputError`.
    """
    path = Path(path)
    check_places(path)
    if format == "openvino":
        require_packages(("openvino",), of="export", extra="openvino")
        if path.suffix != ".xml":
            raise ArgumentError.about("path", expected="a file that ends in .xml, for openvino", got=path.name)
        check_output(path.with_suffix(".bin"))
    if not detector.images_:
        raise NotFittedError("export_model needs a fitted detector. Call fit(normal_images) first.")
    source = None if images is None else normal_images(images, max_pixels=detector.max_pixels)
    if source is not None:
        check_first(source)
    built = build(detector, model)
    model_of = _openvino_of(built) if format == "openvino" else None
    run = None if model_of is None else on_openvino(model_of)
    layers = partial(layers_of, detector)
    parity = check_parity(detector, built, source, layers=layers, path=str(path), run=run, progress=progress)
    return finish(built, path, parity, model_of=model_of)


def check_places(path: Path) -> None:
    """Refuse, before the work, what cannot be written, or not without other packages."""
    check_output(path)
    _check_program(path.with_name(RUN))
    require_onnx()


def finish(built: Any, path: Path, parity: Parity, *, model_of: Any = None) -> Exported:
    """Write what was compared, an `onnx.ModelProto`, or the `openvino.Model` of it, and the program beside it."""
    card = _add_to_card(built, {"parity": asdict(parity)})
    if model_of is None:
        write_whole(path, built.SerializeToString())
    else:
        _write_openvino(model_of, card, path)
    program = path.with_name(RUN)
    write_whole(program, _program())
    if parity.drawn:
        _log.info("compared on drawn pictures alone: give the normal images too, to compare near the threshold.")
    return Exported(path, program, path.stat().st_size, parity)


def _openvino_of(built: Any) -> Any:
    """The same graph as an `openvino.Model`."""
    return import_openvino().Core().read_model(built.SerializeToString())


def _write_openvino(model: Any, card: str, path: Path) -> None:
    """Two files: the graph, with the card in it, and its numbers."""
    model.set_rt_info(card, [CARD])
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, path.name)
        import_openvino().save_model(model, made, compress_to_fp16=False)
        for part in (made.with_suffix(".bin"), made):  # the graph last: it names the other
            write_whole(path.with_name(part.name), part.read_bytes())


def _add_to_card(built: Any, more: dict[str, object]) -> str:
    """Extend the card in a model's metadata; gives it."""
    (row,) = (row for row in built.metadata_props if row.key == CARD)
    row.value = json.dumps(json.loads(row.value) | more)
    return str(row.value)


def _program() -> str:
    return Path(__file__).with_name(RUN).read_text(encoding="utf-8")


def _check_program(path: Path) -> None:
    """Refuse to replace a program of somebody else's."""
    check_output(path)
    first = _program().splitlines()[0]
    if path.exists() and path.read_text(encoding="utf-8", errors="replace").splitlines()[:1] != [first]:
        raise OutputError(f"{path}: is there already, and none of ours. Choose another folder for the exported file.")
