"""Regions as COCO JSON, which tools for annotation read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import write_whole


def write_coco(path: Path, regions_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the regions of images by name, as they stand in the lines of `predict`; an image that has gone is left out.

    Beside COCO's own fields an annotation has `score` (the peak) and `p_value`. Raises `OutputError`.
    """
    from ..images.decode import upright_size

    sizes = {name: upright_size(Path(name)) for name in regions_of}
    names = [name for name, size in sizes.items() if size is not None]
    numbers = {name: number for number, name in enumerate(names, start=1)}
    found = [(numbers[name], region) for name in names for region in regions_of[name]]
    content = {
        "info": {"description": f"anomalous regions found by blemish {__version__}"},
        "images": [_image(name, numbers[name], sizes[name]) for name in names],
        "categories": [{"id": 1, "name": "anomaly"}],
        "annotations": [_annotation(image, number, region) for number, (image, region) in enumerate(found, start=1)],
    }
    write_whole(path, json.dumps(content))


def _image(name: str, number: int, size: Any) -> dict[str, object]:
    return {"id": number, "file_name": name, "width": size[1], "height": size[0]}


def _annotation(image: int, number: int, region: Mapping[str, Any]) -> dict[str, object]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": region["box"],
        "area": region["area"],
        "segmentation": [[length for point in region["contour"] for length in point]],
        "iscrowd": 0,
        "score": region["peak"],
        "p_value": region["p_value"],
    }
