"""THE REGISTRY of out-of-distribution detectors: one import and one entry each."""

from __future__ import annotations

from ._base import Head as Head
from ._base import OODDetector as OODDetector
from ._base import Outputs as Outputs
from .classifier import Classifier as Classifier
from .classifier import open_classifier as open_classifier
from .distances import Mahalanobis as Mahalanobis
from .distances import NearestNeighbours as NearestNeighbours
from .distances import RelativeMahalanobis as RelativeMahalanobis
from .distances import ViM as ViM
from .ensemble import Ensemble as Ensemble
from .gradient import Gradient as Gradient
from .last_layer import ExGrad as ExGrad
from .last_layer import GradNorm as GradNorm
from .last_layer import LastLayerGradient as LastLayerGradient
from .logits import MSP as MSP
from .logits import Energy as Energy
from .logits import Entropy as Entropy
from .logits import GeneralisedEntropy as GeneralisedEntropy
from .logits import MaxLogit as MaxLogit
from .odin import ODIN as ODIN
from .rectified import ASH as ASH
from .rectified import SCALE as SCALE
from .rectified import ReAct as ReAct

DETECTORS: dict[str, type[OODDetector]] = {
    "msp": MSP,
    "max_logit": MaxLogit,
    "energy": Energy,
    "entropy": Entropy,
    "gen": GeneralisedEntropy,
    "odin": ODIN,
    "gradient": Gradient,
    "grad_norm": GradNorm,
    "last_layer": LastLayerGradient,
    "ex_grad": ExGrad,
    "ensemble": Ensemble,
    "mahalanobis": Mahalanobis,
    "relative_mahalanobis": RelativeMahalanobis,
    "knn": NearestNeighbours,
    "vim": ViM,
    "react": ReAct,
    "ash": ASH,
    "scale": SCALE,
}
