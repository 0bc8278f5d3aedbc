"""THE REGISTRY of out-of-distribution detectors: one line each."""

from __future__ import annotations

from pathlib import Path

from .. import persist
from ..errors import ArgumentError, ModelFileError
from ..parameters import read_plain
from ._base import KIND, OODDetector

# isort: off
from .logits import MSP as MSP
from .logits import MaxLogit as MaxLogit
from .logits import Energy as Energy
from .logits import Entropy as Entropy
from .logits import GeneralisedEntropy as GeneralisedEntropy
from .odin import ODIN as ODIN
from .gradient import Gradient as Gradient
from .last_layer import GradNorm as GradNorm
from .last_layer import LastLayerGradient as LastLayerGradient
from .last_layer import ExGrad as ExGrad
from .ensemble import Ensemble as Ensemble
from .distances import Mahalanobis as Mahalanobis
from .distances import RelativeMahalanobis as RelativeMahalanobis
from .distances import NearestNeighbours as NearestNeighbours
from .distances import ViM as ViM
from .rectified import ReAct as ReAct
from .rectified import ASH as ASH
from .rectified import SCALE as SCALE
# isort: on

DETECTORS: dict[str, type[OODDetector]] = {
    found.name: found
    for found in list(vars().values())
    if isinstance(found, type) and issubclass(found, OODDetector) and found is not OODDetector
}
"""By name, in the order above: that of every list of detectors."""


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
