"""From a fitted detector to a file for another program, and the program beside it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.layouts import normal_images
from ..errors import NotFittedError, OutputError
from ..files import check_output, write_whole
from ..images.source import ImageInput
from ..progress import Progress
from .parity import Parity, check_parity
from .trace import require_onnx
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
    images: ImageInput | None = None,
    model: str | Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a detector as an ONNX file, and beside it `run.py`, which judges pictures without torch and blemish.

    Before that, `images` (of a data set its normal ones; None: eight drawn pictures) are judged both ways. `model` is
    the file that the detector was loaded from, whose digest the card will hold. Raises `ExportError` where the file
    would say something else, `ArgumentError` where the method cannot be exported, `MissingPackageError`,
    `NotFittedError` and `OutputError`.
    """
    path = Path(path)
    check_output(path)
    program = _check_program(path.with_name(RUN))
    require_onnx()
    if not detector.images_:
        raise NotFittedError("export_model needs a fitted detector. Call fit(normal_images) first.")
    source = None if images is None else normal_images(images, max_pixels=detector.max_pixels)
    built = build(detector, model)
    parity = check_parity(detector, built, source, path=str(path), progress=progress)
    _add_to_card(built, {"parity": asdict(parity)})
    write_whole(path, built.SerializeToString())
    write_whole(program, _program())
    if parity.drawn:
        _log.info("compared on drawn pictures alone: give the normal images too, to compare near the threshold.")
    return Exported(path, program, path.stat().st_size, parity)


def _add_to_card(built: object, more: dict[str, object]) -> None:
    for row in built.metadata_props:  # type: ignore[attr-defined]
        if row.key == CARD:
            row.value = json.dumps(json.loads(row.value) | more)


def _program() -> str:
    return Path(__file__).with_name(RUN).read_text(encoding="utf-8")


def _check_program(path: Path) -> Path:
    """Refuse to replace a program of somebody else's."""
    check_output(path)
    first = _program().splitlines()[0]
    if path.exists() and path.read_text(encoding="utf-8", errors="replace").splitlines()[:1] != [first]:
        raise OutputError(f"{path}: is there already, and none of ours. Choose another folder for the exported file.")
    return path
