"""ODIN: temperature and a small step towards the predicted class before the softmax.

Liang, Li, Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._base import Floats, Need, OODDetector, Outputs
from .classifier import Classifier
from .logits import msp
from .perturbation import Unit, check, directions, step


@dataclass(kw_only=True)
class ODIN(OODDetector):
    """ODIN: softmax confidence at a temperature, of the image moved a small step towards its class.

    temperature: T of both the step and the score.
    eps: length of the step; 0: none.
    unit: "pixel": eps in units of pixels in [0, 1]. "normalised": in units of the network's input.
    """

    temperature: float = 1000.0
    eps: float = 0.0014
    unit: Unit = "pixel"

    needs: ClassVar[frozenset[Need]] = frozenset({"network"})

    def score(self, outputs: Outputs) -> Floats:
        """log(1 - max softmax(h(x_p) / T)): the ranking of ODIN's -max softmax, without its ties."""
        check(self.temperature, self.eps, self.unit)
        classifier, pixels = self._network(outputs)
        if not self.eps:
            return msp(outputs.logits, temperature=self.temperature)
        (signs,) = directions(classifier, pixels, [self.temperature])
        return self.of_step(classifier, pixels, signs)

    def of_step(self, classifier: Classifier, pixels: Tensor, signs: Tensor) -> Floats:
        """The score with the direction of the step known; for grids."""
        with torch.inference_mode():
            logits = classifier.logits(pixels + step(classifier, self.eps, self.unit) * signs)
        return msp(logits.float().cpu().numpy(), temperature=self.temperature)
