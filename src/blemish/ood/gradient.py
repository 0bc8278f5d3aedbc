"""The gradient method: how strongly the network's weights would change for this image's own label.

score(x) = || grad_theta log max_c softmax(h(x_p) / T)_c ||, over all weights theta or some, at an image x_p that was
moved a small step towards its class as in ODIN. Exact for each image, in batches, through `ops/gradnorm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..ops.gradnorm import Norm, cross_entropy
from ..parameters import parameter
from ..types import Floats
from ._base import Need, OODDetector
from .classifier import Classifier, Outputs
from .perturbation import Unit, directions, step_length

Label = Literal["perturbed", "original"]


@dataclass(kw_only=True)
class Gradient(OODDetector):
    """Gradient method: norm of the gradient of the log-confidence by the weights, after a small step.

    Parameters
    ----------
    temperature: T of both the step and the score. At T = 1 the norm of the features cancels much of the signal, at
        large T the softmax is flat and only the norm of a logit difference is left; values from 2 to 5 did best.
    eps: length of the step; 0: none.
    unit: of eps, as in ODIN.
    label: the class whose confidence is differentiated: the largest logit at the "perturbed" or the "original" image.
    parameters: full names or prefixes of names, such as ("layer1", "fc"); None: all.
    norm: of the gradient.
    """

    name: ClassVar[str] = "gradient"
    needs: ClassVar[frozenset[Need]] = frozenset({"network"})

    temperature: float = parameter(2.0, above=0)
    eps: float = parameter(0.001, at_least=0, at_most=10)
    unit: Unit = "pixel"
    label: Label = "perturbed"
    parameters: tuple[str, ...] | None = None
    norm: Norm = "l2"

    def _score(self, outputs: Outputs) -> Floats:
        """The norm; larger = more anomalous."""
        return self.of_step(*self._stepped(outputs))

    def blocks(self, outputs: Outputs) -> dict[str, Floats]:
        """The norm over each block of the network, in its order, for the price of one score."""
        self._check(outputs)
        classifier, pixels, signs, labels = self._stepped(outputs)
        engine = classifier.grad_norms(self.parameters, self.norm)
        loss = cross_entropy(labels, temperature=self.temperature)
        norms = engine.norms(self._input(classifier, pixels, signs), loss, by="block")
        return {name: norm.cpu().numpy() for name, norm in norms.items()}

    def of_step(self, classifier: Classifier, pixels: Tensor, signs: Tensor | None, labels: Tensor | None) -> Floats:
        """The score with the direction of the step known; for grids."""
        engine = classifier.grad_norms(self.parameters, self.norm)
        loss = cross_entropy(labels, temperature=self.temperature)
        return engine.norms(self._input(classifier, pixels, signs), loss).cpu().numpy()

    def _stepped(self, outputs: Outputs) -> tuple[Classifier, Tensor, Tensor | None, Tensor | None]:
        classifier, pixels = self._network(outputs)
        signs = directions(classifier, pixels, [self.temperature])[0] if self.eps else None
        labels = torch.from_numpy(outputs.logits.argmax(1)) if self.label == "original" else None
        return classifier, pixels, signs, labels

    def _input(self, classifier: Classifier, pixels: Tensor, signs: Tensor | None) -> Tensor:
        moved = pixels if signs is None else pixels + step_length(classifier, self.eps, self.unit) * signs
        return classifier.normalised(moved)
