"""The gradient method: how strongly the network's weights would change for this image's own label.

score(x) = || grad_theta log max_c softmax(h(x_p) / T)_c ||, over all weights theta or some, at an image x_p that was
moved a small step towards its class as in ODIN. Exact for each image, in batches, through `ops/gradnorm.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..ops.gradnorm import Norm, cross_entropy
from ._base import Floats, Need, OODDetector, Outputs
from .classifier import Classifier
from .perturbation import Unit, check, directions, step

Label = Literal["perturbed", "original"]


@dataclass(kw_only=True)
class Gradient(OODDetector):
    """Gradient method: norm of the gradient of the log-confidence by the weights, after a small step.

    temperature: T of both the step and the score. At T = 1 the norm of the features cancels much of the signal, at
        large T the softmax is flat and only the norm of a logit difference is left; values from 2 to 5 did best.
    eps, unit: length of the step, as in ODIN; 0: none.
    label: the class whose confidence is differentiated: the largest logit at the "perturbed" or the "original" image.
    parameters: full names or prefixes of names, such as ("layer1", "fc"); None: all.
    norm: "l2" or "l1".
    """

    temperature: float = 2.0
    eps: float = 0.001
    unit: Unit = "pixel"
    label: Label = "perturbed"
    parameters: tuple[str, ...] | None = None
    norm: Norm = "l2"

    needs: ClassVar[frozenset[Need]] = frozenset({"network"})

    def score(self, outputs: Outputs) -> Floats:
        """The norm; larger = more anomalous."""
        return self.of_step(*self._stepped(outputs))

    def blocks(self, outputs: Outputs) -> dict[str, Floats]:
        """The norm over each block of the network, in its order, for the price of one score."""
        classifier, pixels, signs, labels = self._stepped(outputs)
        engine = classifier.grad_norms(self.parameters, self.norm)
        loss = cross_entropy(labels, temperature=self.temperature)
        norms = engine.norms(self._input(classifier, pixels, signs), loss, by="block")
        return {name: norm.cpu().numpy() for name, norm in norms.items()}

    def of_step(self, classifier: Classifier, pixels: Tensor, signs: Tensor | None, labels: Tensor | None) -> Floats:
        """The score with the direction of the step known; for grids."""
        engine = classifier.grad_norms(self.parameters, self.norm)
        loss = cross_entropy(labels, temperature=self.temperature)
        norms: Floats = engine.norms(self._input(classifier, pixels, signs), loss).cpu().numpy()
        return norms

    def _stepped(self, outputs: Outputs) -> tuple[Classifier, Tensor, Tensor | None, Tensor | None]:
        check(self.temperature, self.eps, self.unit)
        if self.label not in ("perturbed", "original"):
            raise ArgumentError.about("label", expected="'perturbed' or 'original'", got=self.label)
        classifier, pixels = self._network(outputs)
        signs = directions(classifier, pixels, [self.temperature])[0] if self.eps else None
        labels = torch.from_numpy(outputs.logits.argmax(1)) if self.label == "original" else None
        return classifier, pixels, signs, labels

    def _input(self, classifier: Classifier, pixels: Tensor, signs: Tensor | None) -> Tensor:
        moved = pixels if signs is None else pixels + step(classifier, self.eps, self.unit) * signs
        return classifier.normalised(moved)
