"""Why a picture was flagged, for who stands before the page: the nearest normal places, and what differs."""

from __future__ import annotations

import base64
import copy
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArgumentError
from ..explain import Explanation, explain
from ..images.source import from_bytes
from .guard import Refusal
from .logbook import Logbook
from .models import Loaded

NORMALS = 32
"""Pictures of good parts that a region is compared with."""
_KEPT = 200
"""Answers that are at hand."""
_SHOWN = 3
"""Regions of a picture that are explained, and nearest places of each."""


class Reasons:
    """Explains verdicts, one at a time, beside the judge.

    `learned` gives pictures that a model was learned from, for as long as too few others are kept.
    """

    def __init__(self, logbook: Logbook, learned: Callable[[str], dict[str, bytes]]) -> None:
        self._logbook, self._learned = logbook, learned
        self._found: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, loaded: Loaded, line: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """The reasons of a verdict's regions, and with how many pictures it was compared. Raises `Refusal` (404, 409).

        Compared is with pictures that this model called normal, or that somebody said were fine.
        """
        with self._lock:  # one at a time: whoever waits for a verdict needs the cores too
            known = self._found.get(line["id"])
            if known is None:
                known = self._found[line["id"]] = self._explain(loaded, line, content)
                while len(self._found) > _KEPT:
                    self._found.popitem(last=False)
            return known

    def _explain(self, loaded: Loaded, line: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        if not line["regions"]:
            return {"reasons": [], "compared": 0}
        normal = self._normal(loaded.name, line["picture"])
        if not normal:
            raise Refusal(409, "No picture of a good part is kept that this one could be compared with.")
        detector = copy.copy(loaded.detector)  # which counts what it skips
        try:
            found = explain(detector, from_bytes({line["picture"]: content}), from_bytes(normal), most=_SHOWN)
        except ArgumentError as error:
            raise Refusal(404, f"This model's regions cannot be explained. {error}") from None
        return {"reasons": [_reason(one) for one in found], "compared": len(normal)}

    def _normal(self, name: str, besides: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for digest in self._candidates(name):
            if digest != besides and digest not in found and len(found) < NORMALS:
                content = self._logbook.picture(digest)
                found |= {} if content is None else {digest: content}
        return found if len(found) >= NORMALS else dict(list((found | self._learned(name)).items())[:NORMALS])

    def _candidates(self, name: str) -> Iterator[str]:
        """Digests of pictures of good parts, those that somebody spoke of first."""
        for line in self._logbook.history(model=name, said="fine", limit=NORMALS):
            yield line["picture"]
        for line in self._logbook.history(model=name, anomalous=False, limit=4 * NORMALS):
            if line["feedback"] != "defect":
                yield line["picture"]


def _reason(found: Explanation) -> dict[str, Any]:
    """One region: crops as data URLs, and differences with their measures, so that a page can say them in its words."""
    return {
        "box": found.region.box,
        "p_value": found.region.p_value,
        "crop": _data_url(found.pixels),
        "differences": [
            {"kind": one.kind, "words": one.words, "own": one.own, "usual": one.usual} for one in found.measured
        ],
        "nearest": [
            {"picture": one.name, "centre": one.centre, "distance": one.distance, "crop": _data_url(one.pixels)}
            for one in found.nearest[:_SHOWN]
        ],
    }


def _data_url(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
