"""ODIN: temperature and a small step towards the predicted class before the softmax.

Liang, Li, Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..parameters import parameter
from ..types import Floats
from ._base import Need, OODDetector
from .classifier import Classifier, Outputs
from .logits import msp
from .perturbation import Unit, directions, step_length


@dataclass(kw_only=True)
class ODIN(OODDetector):
    """ODIN: softmax confidence at a temperature, of the image moved a small step towards its class.

    Parameters
    ----------
    temperature: T of both the step and the score.
    eps: length of the step; 0: none.
    unit: of eps: that of pixels in [0, 1], or that of the network's input.
    """

    name: ClassVar[str] = "odin"
    needs: ClassVar[frozenset[Need]] = frozenset({"network"})

    temperature: float = parameter(1000.0, above=0)
    eps: float = parameter(0.0014, at_least=0, at_most=10)
    unit: Unit = "pixel"

    def _score(self, outputs: Outputs) -> Floats:
        """log(1 - max softmax(h(x_p) / T)): the ranking of ODIN's -max softmax, without its ties."""
        classifier, pixels = self._network(outputs)
        if not self.eps:
            return msp(outputs.logits, temperature=self.temperature)
        (signs,) = directions(classifier, pixels, [self.temperature])
        return self.of_step(classifier, pixels, signs)

    def of_step(self, classifier: Classifier, pixels: Tensor, signs: Tensor) -> Floats:
        """The score with the direction of the step known; for grids."""
        with torch.inference_mode():
            logits = classifier.logits(pixels + step_length(classifier, self.eps, self.unit) * signs)
        return msp(logits.float().cpu().numpy(), temperature=self.temperature)
