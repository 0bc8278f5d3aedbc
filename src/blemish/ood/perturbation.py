"""The small step of ODIN towards the predicted class, shared by detectors and by grids over eps and T.

Liang, Li, Srikant, "Enhancing the reliability of out-of-distribution image detection in neural networks", 2018, eq. 2:
x_p = x + eps sign(grad_x log max_c softmax(h(x) / T)_c), the same as minus the sign of the cross-entropy's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..ops.gradnorm import cross_entropy
from .classifier import Classifier

Unit = Literal["pixel", "normalised"]
"""Of eps: of pixels in [0, 1] (as ODIN's own code, which divides by the standard deviation), or after normalisation."""


def directions(classifier: Classifier, pixels: Tensor, temperatures: Sequence[float]) -> list[Tensor]:
    """Signs of the step for each temperature, each `(batch, 3, height, width)` with entries -1, 0, 1.

    One forward pass for all temperatures, one backward pass each: sign(grad) does not depend on eps.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in classifier.model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            x = pixels.detach().clone().to(classifier.device).requires_grad_()
            # In float64 from here on: at p_y = 1 the gradient of the loss would vanish in float32.
            logits = classifier.logits(x).double()
            labels = logits.detach().argmax(1)
            found = []
            for temperature in temperatures:
                losses = cross_entropy(labels, temperature=temperature)(logits)
                (seed,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
                # The sign stays when the seed is scaled, and a confident image's gradient does not underflow.
                seed = seed / seed.abs().amax(1, keepdim=True).clamp_min(torch.finfo(seed.dtype).tiny)
                (gradient,) = torch.autograd.grad(logits, x, seed, retain_graph=True)
                found.append(-gradient.sign())
            return found
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def step_length(classifier: Classifier, eps: float, unit: Unit) -> Tensor | float:
    """Length of the step in pixels: a number, or one a channel `(3, 1, 1)`."""
    return eps if unit == "pixel" else eps * classifier._std
