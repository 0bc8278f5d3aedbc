"""A classifier and a detector of `ood/` as one file: from the picture to class, score, p-value and verdict.

The classifier is recorded as any network is; what the detector makes of its outputs is recorded while its own `score`
runs on arrays that remember (`arrays.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..calibrate import Calibration
from ..errors import ArgumentError
from ..features.onnx_graph import record
from ..images.preprocess import Preprocess
from ..images.source import Batches, ImageInput, ImageSource, as_source
from ..ood import Classifier, OODDetector, Outputs
from ..parameters import plain_parameters
from ..progress import Progress
from ..report.lines import judged
from ..types import Decision
from .arrays import Recorded
from .nodes import Made, Nodes
from .parity import check_first, check_parity, drawn
from .pixels import PictureFrame
from .runs import OnOnnxruntime
from .trace import check_size, named, refusing, require_onnx
from .whole import Kinds, Whole, add_decision, assemble, calibration_card
from .write import Exported, check_places, finish, write_onnx


@dataclass(frozen=True)
class ClassifierJudge:
    """A classifier, what judges its outputs, and held-out scores: what is exported, and what it is compared with."""

    classifier: Classifier
    detector: OODDetector
    calibration_: Calibration | None = None

    region_: ClassVar[None] = None

    @property
    def preprocessing(self) -> Preprocess:
        """How pictures become the network's input."""
        return self.classifier.preprocess

    def decide(self, name: str, score: float) -> Decision:
        """The verdict on a score."""
        known = self.calibration_
        if known is None:
            return Decision(name, score, None, None, None)
        return Decision(name, score, None, known.p_value(score), known.threshold, promise=known.promise)

    def predict(self, images: ImageSource) -> Iterator[Decision]:
        """The verdict on each image; no maps."""
        for batch in Batches(images, self.preprocessing, 8, 1):
            scores = self.detector.score(self.classifier.outputs(batch.pixels)).tolist()
            yield from map(self.decide, batch.names, scores)

    def layers(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the detector reads, by the name of the graph's value, for `(1, 3, height, width)` pixels."""
        with torch.inference_mode():
            return dict(zip(_names(self.classifier), _Classified(self.classifier)(pixels), strict=True))


def export_classifier(
    classifier: Classifier,
    detector: OODDetector,
    path: str | Path,
    *,
    calibration: Calibration | None = None,
    images: ImageInput | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a classifier and a detector as an ONNX file, and beside it `run.py`.

    `calibration` is of held-out scores (`blemish.calibrate.calibrate`); None: no p-value and verdict. Before anything
    is written `images`, or eight drawn pictures, are judged both ways. Raises `ArgumentError` for a detector that
    cannot be exported, `ExportError` where the file would say something else, `MissingPackageError`, and `OutputError`.
    """
    require_onnx()
    path, judge = Path(path), ClassifierJudge(classifier, detector, calibration)
    check_places(path)
    _check(judge)
    source = None if images is None else as_source(images)
    if source is not None:
        check_first(source)
    built, card = _build(judge), _card(judge)
    run = OnOnnxruntime(built)
    parity = check_parity(judge, run, source, layers=judge.layers, path=str(path), progress=progress)
    return finish(partial(write_onnx, built), path, parity, card=card)


def check_detector(detector: OODDetector) -> None:
    """Refuse a detector that takes gradients. Raises `ArgumentError`."""
    if "network" in detector.needs:
        raise ArgumentError.about(
            "detector", expected="one that reads a single forward pass, to be exported",
            got=f"{detector.name}, which takes gradients by the network's input or weights",
            instead="docs/export.md says which can be.",
        )  # fmt: skip


def _check(judge: ClassifierJudge) -> None:
    calibration = judge.calibration_
    check_detector(judge.detector)
    if judge.preprocessing.white_level is not None:
        raise ArgumentError.about("white_level", expected="pictures of 8 bits, to be exported", got="a camera of more")
    if calibration is not None and (calibration.kind != "split" or calibration.groups is not None):
        raise ArgumentError.about("calibration", expected="split, without groups", got=calibration.kind)


class _Classified(nn.Module):
    """All that a forward pass gives."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self._classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        logits, features = self._classifier.with_features(pixels)
        members = [member.logits(pixels) for member in self._classifier.members]
        found = (logits, *([] if features is None else [features]), *members)
        return tuple(one.float() for one in found)


def _names(classifier: Classifier) -> list[str]:
    members = [f"layer.member.{number}" for number in range(len(classifier.members))]
    return ["layer.logits", *["layer.features"] * (classifier.head is not None), *members]


def _build(judge: ClassifierJudge) -> Any:
    classifier, detector = judge.classifier, judge.detector
    with refusing("model", classifier.name):
        core = record(_Classified(classifier), torch.full((1, 3, *judge.preprocessing.size), 0.5))
    named(core, _names(classifier), of="model")
    graph = Nodes("blemish")
    frame = PictureFrame(graph, Made(graph, "pixels"), judge.preprocessing)
    graph.rename(frame.network_input(), "network.input")
    before = len(graph.nodes)
    picture = next(iter(Batches(drawn(judge), judge.preprocessing, 1, 1)))  # any: its values leave no trace
    layers = judge.layers(picture.pixels)
    known = {name: Recorded.of(tensor.numpy(), Made(graph, name)) for name, tensor in layers.items()}
    plain = classifier.outputs(picture.pixels)
    members = tuple(value for name, value in known.items() if name.startswith("layer.member."))
    outputs = Outputs(
        known["layer.logits"], known.get("layer.features"), plain.head,
        (known["layer.logits"], *members) if members else (), classifier=None,
    )  # fmt: skip
    with refusing("detector", detector.name):
        score: Any = detector.score(outputs)
        if not isinstance(score, Recorded) or score.made is None:
            raise TypeError("a score that does not come from its arrays")
    check_size(core.ByteSize() + sum(array.nbytes for array in graph.constants.values()), of="detector")
    made = score.made.to(np.float32)
    graph.rename(made, "score")
    graph.rename(graph.make("ArgMax", Made(graph, "layer.logits"), axis=1, keepdims=0), "predicted")
    kinds: Kinds = {"score": (np.float32, [1]), "predicted": (np.int64, [1])}
    return assemble(Whole(graph, before, kinds | add_decision(graph, made, judge.calibration_)), core)


def _card(judge: ClassifierJudge) -> dict[str, Any]:
    classifier, detector = judge.classifier, judge.detector
    line = judged(judge.decide("", 0.0)) | {"predicted": 0}
    made_of = {"classifier": classifier.name, "detector": detector.name, "parameters": plain_parameters(detector)}
    known = {"line": line, "made_of": made_of, "input": list(judge.preprocessing.size)}
    return known | {"calibration": calibration_card(judge.calibration_)}
