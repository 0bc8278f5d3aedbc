"""The whole decision as one graph: picture, network, method, map, p-value, threshold, verdict; and the card."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..calibrate import Calibration
from ..errors import ArgumentError
from ..features.onnx_graph import OPSET
from ..report.lines import judged, model_digest
from .nodes import Made, Nodes
from .pixels import PictureFrame
from .trace import Watched, trace, watch

if TYPE_CHECKING:
    from ..detector import Detector

CARD = "blemish"
"""Under this key of a file's metadata."""
Kinds = dict[str, tuple[Any, list[int | str]]]
"""Type and shape of outputs, by name."""
_IR = 9
"""Version of the file format that runtimes of the last years read."""


def check_exportable(detector: Detector) -> None:
    """Refuse what a graph could not do as the detector does. Raises `ArgumentError`."""
    region = detector.region_
    precision = getattr(detector.method_, "precision", "float32")
    kind = "none" if detector.calibration_ is None else detector.calibration_.kind
    rules = (
        (kind in ("cross", "full"), "calibration", "split or loo, whose p-values follow from the score alone", kind),
        (region is not None and region.mask is None, "roi", "one region for all pictures", "one for each picture"),
        (detector.preprocessing.white_level is not None, "white_level", "pictures of 8 bits", "a camera of more bits"),
        (precision != "float32", "precision", "float32", precision),
    )
    for refused, what, expected, got in rules:
        if refused:
            raise ArgumentError.about(
                what, expected=f"{expected}, to be exported", got=got, instead="Fit again, for a model to be exported."
            )


@dataclass(frozen=True)
class Whole:
    """Our nodes around a core, from `pixels` to `network.input` and from its outputs to ours."""

    graph: Nodes
    before: int
    """So many of them come before the core."""
    kinds: Kinds
    """What comes out."""
    size: tuple[int, int] | None = None
    """`(height, width)` of the one size of pictures that is taken; None: any."""


def surround(core: Watched, detector: Detector) -> Whole:
    """What happens to a picture before the network, and to score and map behind the method.

    Input `pixels`, `(1, height, width, 3)` uint8; outputs `score` `(1,)` float32, `map` `(1, height, width)` float32
    where the method has one, and of a calibrated detector `p_value` `(1,)` float64, `threshold` float64, `anomalous`
    `(1,)` bool. A detector with a region of interest takes pictures of the region's size alone.
    """
    preprocess, mask = detector.preprocessing, None if detector.region_ is None else detector.region_.mask
    graph = Nodes("blemish")
    pictures = Made(graph, "pixels")
    if mask is not None:
        grey = np.array(int(preprocess.middle(Image.new("RGB", (1, 1)))), np.uint8)
        pictures = graph.make("Where", mask[None, :, :, None], pictures, grey)
    frame = PictureFrame(graph, pictures, preprocess)
    graph.rename(frame.network_input(), "network.input")
    before = len(graph.nodes)
    score = Made(graph, "network.score")
    graph.rename(score, "score")
    kinds: Kinds = {"score": (np.float32, [1])}
    size = None if mask is None else (mask.shape[0], mask.shape[1])
    if "network.map" in core.outputs:
        placed = frame.to_original(Made(graph, "network.map"))
        if core.inside is not None and size is not None:
            seen = preprocess.inside(core.inside[0], size)
            placed = graph.make("Where", seen[None], placed, np.array(np.nan, np.float32))
        graph.rename(placed, "map")
        kinds["map"] = (np.float32, [1, *(size or ("height", "width"))])
    return Whole(graph, before, kinds | add_decision(graph, score, detector.calibration_), size)


def build(detector: Detector) -> Any:
    """The whole decision as an `onnx.ModelProto`, with the outputs of `surround`."""
    core = watch(detector)
    return assemble(surround(core, detector), trace(core))


def assemble(whole: Whole, core: Any) -> Any:
    """One ONNX model of our nodes, and of the recorded ones between."""
    from onnx import helper

    def value(name: str, dtype: Any, shape: list[int | str]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    nodes, constants = whole.graph.as_onnx()
    made = helper.make_graph(
        [*nodes[: whole.before], *core.graph.node, *nodes[whole.before :]],
        "blemish",
        [value("pixels", np.uint8, [1, *(whole.size or ("height", "width")), 3])],
        [value(name, *kind) for name, kind in whole.kinds.items()],
        [*constants, *core.graph.initializer],
    )
    opsets = [helper.make_opsetid("", OPSET), *(known for known in core.opset_import if known.domain)]
    return helper.make_model(made, opset_imports=opsets, functions=core.functions, ir_version=_IR)


def add_decision(graph: Nodes, score: Made, calibration: Calibration | None) -> Kinds:
    """p-value, threshold and verdict, where something is known of held-out scores; gives what these outputs are."""
    if calibration is None:
        return {}
    _decide(graph, score, calibration)
    numbers: Kinds = {"p_value": (np.float64, [1]), "threshold": (np.float64, [])}
    return numbers | {"anomalous": (np.bool_, [1])}


def _decide(graph: Nodes, score: Made, calibration: Calibration) -> None:
    """p-value, threshold and verdict, by comparisons of float32 that are those of the float64 that they stand for."""
    scores, threshold = calibration.scores, calibration.threshold
    # Of any score, the p-value is that of the next held-out score above it, or of infinity.
    p_values = calibration.p_values(np.concatenate([[np.inf], scores[::-1]]))
    above = graph.value(_below(scores)).is_at_least(score)
    count = graph.make("ReduceSum", above.to(np.int64), np.array([0]), keepdims=1)
    graph.rename(graph.make("Gather", graph.value(p_values), count), "p_value")
    graph.rename(graph.value(np.float64(threshold)), "threshold")
    graph.rename(score.is_above(_below(np.array(threshold))), "anomalous")


def _below(values: Any) -> Any:
    """The largest float32 that are at most these float64: a float32 compares with both alike."""
    found = values.astype(np.float32)
    return np.where(found > values, np.nextafter(found, np.float32(-np.inf)), found).astype(np.float32)


def card(detector: Detector, model: str | Path | None, *packages: str) -> dict[str, Any]:
    """What the file says about itself, with the digest of the model file it was made of; JSON types only.

    `packages` wrote it, beside those of a model file.
    """
    manifest = detector.manifest()
    manifest["versions"] |= {name: version(name) for name in packages}
    return {
        "line": judged(detector.decide("", 0.0)),
        "made_of": manifest,
        "model": None if model is None else model_digest(model),
        "input": list(detector.preprocessing.size),
        "calibration": calibration_card(detector.calibration_),
        "digests": {"learned": sorted(detector.learned_), "calibration": sorted(detector.calibrated_on_)},
    }


def calibration_card(calibration: Calibration | None) -> dict[str, Any] | None:
    """Held-out scores, and what is made of them."""
    if calibration is None:
        return None
    known = {"scores": calibration.scores.tolist(), "false_alarm_rate": calibration.false_alarm_rate}
    known |= {"certain": calibration.certain, "threshold": calibration.threshold}
    return known | {"groups": None if calibration.groups is None else calibration.groups.tolist()}
