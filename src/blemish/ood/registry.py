"""THE REGISTRY of out-of-distribution detectors: one import and one entry each."""

from __future__ import annotations

from pathlib import Path

from .. import persist
from ..errors import ArgumentError, ModelFileError
from ..parameters import read_plain
from ._base import KIND, OODDetector
from .distances import Mahalanobis, NearestNeighbours, RelativeMahalanobis, ViM
from .ensemble import Ensemble
from .gradient import Gradient
from .last_layer import ExGrad, GradNorm, LastLayerGradient
from .logits import MSP, Energy, Entropy, GeneralisedEntropy, MaxLogit
from .odin import ODIN
from .rectified import ASH, SCALE, ReAct

_ALL: tuple[type[OODDetector], ...] = (
    MSP, MaxLogit, Energy, Entropy, GeneralisedEntropy, ODIN, Gradient,
    GradNorm, LastLayerGradient, ExGrad,  # of the last layer alone
    Ensemble, Mahalanobis, RelativeMahalanobis, NearestNeighbours, ViM, ReAct, ASH, SCALE,
)  # fmt: skip
DETECTORS: dict[str, type[OODDetector]] = {detector.name: detector for detector in _ALL}
__all__ = ["DETECTORS", "load_detector", *(detector.__name__ for detector in _ALL)]  # noqa: PLE0604 - strings


def load_detector(path: str | Path) -> OODDetector:
    """Read a detector that `OODDetector.save` wrote; it scores exactly as the saved one. Raises `ModelFileError`."""
    try:
        tensors, manifest = persist.load(path)
        if manifest.get("kind") != KIND:
            raise ModelFileError(f"{path}: not a detector of `blemish.ood`. Try blemish.Detector.load.")
        name = manifest["name"]
        if name not in DETECTORS:
            raise ModelFileError(f"{path}: detector {name} is not known here. Known: {', '.join(DETECTORS)}.")
        detector = DETECTORS[name](**read_plain(DETECTORS[name], manifest["parameters"], of="parameters"))
        detector.restore(tensors)
    except (ArgumentError, AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: not a detector of this version of blemish ({error}). Save it again.") from error
    return detector
