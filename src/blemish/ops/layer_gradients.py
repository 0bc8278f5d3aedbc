"""Rules for gradients of single samples: what one layer's parameter contributes, from the layer's input and gradient.

A rule is `(uses, batch, p, form) -> (batch,)`: the sum over the parameter's entries of |gradient of one sample|^p, for
p = 1 or 2. A parameter that is used several times has several uses; their gradients are added before the norm is
taken, never the norms.

Where the gradient of a weight is a product A^T G over T positions, its squared norm is also the sum of
(A A^T) * (G G^T), "ghost" norm: nothing of the weight's size appears. It costs T^2 (D + q) instead of T D q.
Goodfellow, "Efficient per-example gradient computations", 2015; Li et al., "Large language models can be strong
differentially private learners", 2022; Bu, Mao, Xu, "Scalable and efficient training of large convolutional neural
networks with differential privacy", 2022 (the choice between the two forms).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

Form = Literal["auto", "ghost", "instantiate"]


@dataclass
class Use:
    """One call of a layer: `rows` consecutive entries on the first axis belong to one sample."""

    layer: Any
    input: Tensor
    rows: int = 1
    gradient: Tensor | None = None
    """Of the loss with respect to the layer's output; None where the output did not influence the loss."""

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Input and gradient, in float32 at least."""
        assert self.gradient is not None
        return _at_least_float32(self.input), _at_least_float32(self.gradient)


Rule = Callable[[Sequence[Use], int, int, Form], Tensor]
Gradients = Callable[[Any, Tensor, Tensor], Tensor]
"""`(layer, input, gradient) -> (rows, ...)`: the parameter's gradient for each entry of the first axis."""


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def power_sum(gradients: Tensor, p: int) -> Tensor:
    """`(batch, ...)` -> `(batch,)`: sum of |entry|^p."""
    flat = gradients.reshape(len(gradients), -1)
    return flat.square().sum(1) if p == 2 else flat.abs().sum(1)


def in_range(uses: Sequence[Use], batch: int) -> tuple[list[Use], Tensor]:
    """Uses with gradients divided by a power of two a sample, and these `(batch,)` powers, float64.

    1 unless squares would leave the floating-point range, as where a network ends in a saturated softmax.
    """
    gradients = [use.tensors()[1].reshape(batch, -1) for use in uses]
    sizes = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients])
    limit = torch.finfo(sizes.dtype).tiny ** 0.25
    if bool(((sizes > limit) & (sizes < 1 / limit)).all()):
        return list(uses), torch.ones(batch, dtype=torch.float64, device=sizes.device)
    largest = torch.stack([gradient.abs().amax(1) for gradient in gradients]).amax(0).double()
    scale = power_of_two(largest)
    scaled = [
        replace(use, gradient=(gradient.double() / scale[:, None]).to(gradient.dtype).view_as(use.tensors()[1]))
        for use, gradient in zip(uses, gradients, strict=True)
    ]
    return scaled, scale


def power_of_two(sizes: Tensor) -> Tensor:
    """About as large as each of `sizes`; 1 for 0."""
    return torch.where(sizes > 0, torch.ldexp(torch.ones_like(sizes), torch.frexp(sizes).exponent), 1.0)


def _by_adding(gradients: Gradients) -> Rule:
    """Make a rule that writes each sample's gradient down, adds the uses, and takes the norm."""

    def rule(uses: Sequence[Use], batch: int, p: int, form: Form) -> Tensor:
        total: Tensor | None = None
        for use in uses:
            of_rows = gradients(use.layer, *use.tensors())
            of_samples = of_rows.reshape(batch, use.rows, *of_rows.shape[1:]).sum(1) if use.rows > 1 else of_rows
            total = of_samples if total is None else total + of_samples
        assert total is not None
        return power_sum(total, p)

    return rule


# Linear layers


def _positions(uses: Sequence[Use], batch: int) -> tuple[Tensor, Tensor]:
    """All positions of all uses behind one another: inputs `(batch, T, D)` and gradients `(batch, T, q)`."""
    pairs = [use.tensors() for use in uses]
    inputs = torch.cat([a.reshape(batch, -1, a.shape[-1]) for a, _ in pairs], 1)
    return inputs, torch.cat([g.reshape(batch, -1, g.shape[-1]) for _, g in pairs], 1)


def ghost_is_smaller(positions: int, entries: int) -> bool:
    """Bu et al. 2022: two T x T matrices are smaller than the gradient, in memory and nearly always in time."""
    return 2 * positions * positions <= entries


def _linear_weight(uses: Sequence[Use], batch: int, p: int, form: Form) -> Tensor:
    a, g = _positions(uses, batch)
    if a.shape[1] == 1:  # one position: the gradient is an outer product
        return power_sum(a, p) * power_sum(g, p)
    entries = a.shape[2] * g.shape[2]
    if p == 2 and (form == "ghost" or (form == "auto" and ghost_is_smaller(a.shape[1], entries))):
        return ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp_min(0)
    return power_sum(g.mT @ a, p)


def _linear_bias(uses: Sequence[Use], batch: int, p: int, form: Form) -> Tensor:
    return power_sum(_positions(uses, batch)[1].sum(1), p)


# Convolutions, of 1 to 3 dimensions, plain and transposed

_WEIGHT_GRADIENT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


@dataclass(frozen=True)
class _Correlation:
    """A convolution's weight gradient is a correlation of `image` with `positions`, whichever of them is the input."""

    image: Tensor
    """`(rows, channels, *size)`."""
    positions: Tensor
    """`(rows, channels', *positions)`."""
    layer: Any
    padding: tuple[int, ...]
    """Zeros still to be added to either side of each axis of the image."""

    def gradients(self) -> Iterator[Tensor]:
        """`(rows, *weight shape)`, or one row after the other."""
        pointwise = math.prod(_kernel(self.layer)) == 1
        return iter([self._batched()]) if pointwise or self.image.device.type != "cpu" else self._one_by_one()

    def _one_by_one(self) -> Iterator[Tensor]:
        # On a CPU the library's own kernel, one sample at a time, beat every batched form that was measured; for the
        # first layer of ResNet-18 it took a fifth of the time of a training step's kernel for the whole batch.
        layer, shape = self.layer, self.layer.weight.shape
        weight_gradient: Any = _WEIGHT_GRADIENT[self.image.ndim - 2]
        for i in range(len(self.image)):
            image, positions = self.image[i : i + 1], self.positions[i : i + 1]
            gradient = weight_gradient(
                image, shape, positions, layer.stride, self.padding, layer.dilation, layer.groups
            )
            yield gradient[None]

    def _batched(self) -> Tensor:
        """One product for all samples at each place of the kernel: nothing is unfolded."""
        positions = self._grouped(self.positions)
        products = [positions @ self._grouped(part).mT for part in self._parts()]
        stacked = torch.stack(products, -1)  # (rows, groups, channels', channels, kernel)
        return stacked.flatten(1, 2).reshape(-1, *self.layer.weight.shape)

    def ghost(self) -> Tensor:
        """`(rows,)` squared norms from two `(positions, positions)` products a group."""
        positions = self._grouped(self.positions)
        gram: Tensor | None = None
        for part in self._parts():
            grouped = self._grouped(part)
            gram = grouped.mT @ grouped if gram is None else gram + grouped.mT @ grouped
        assert gram is not None
        return (gram * (positions.mT @ positions)).sum((1, 2, 3)).clamp_min(0)

    def _grouped(self, maps: Tensor) -> Tensor:
        """`(rows, groups, channels, positions)`."""
        return maps.reshape(len(maps), self.layer.groups, -1, math.prod(maps.shape[2:]))

    def _parts(self) -> Iterator[Tensor]:
        """What each place of the kernel sees: `(rows, channels, *positions)`."""
        layer, sizes = self.layer, self.positions.shape[2:]
        image = _padded(self.image, self.padding)
        strides, dilations = (_each(value, len(sizes)) for value in (layer.stride, layer.dilation))
        for place in product(*(range(k) for k in _kernel(layer))):
            part = image
            for axis, (i, n, s, d) in enumerate(zip(place, sizes, strides, dilations, strict=True), start=2):
                part = part[(slice(None),) * axis + (slice(i * d, i * d + (n - 1) * s + 1, s),)]
            yield part


def _kernel(layer: Any) -> torch.Size:
    """Size of the kernel in use: `kernel_size` is that of the weight which the layer was made with."""
    shape: torch.Size = layer.weight.shape[2:]
    return shape


def _each(value: Any, n: int) -> tuple[int, ...]:
    """A number for each of `n` axes; layers also take one for all."""
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return numbers * n if len(numbers) == 1 else numbers


def _correlate(layer: Any, a: Tensor, g: Tensor) -> _Correlation:
    kernel = _kernel(layer)
    none, dilations = (0,) * len(kernel), _each(layer.dilation, len(kernel))
    if layer.transposed:  # the roles are swapped: the kernel walks over the output, of which it may not reach the end
        g = _padded(g, _each(layer.padding, len(kernel)))
        strides = _each(layer.stride, len(kernel))
        for axis, (n, s, d, k) in enumerate(zip(a.shape[2:], strides, dilations, kernel, strict=True), start=2):
            g = g.narrow(axis, 0, (n - 1) * s + (k - 1) * d + 1)
        return _Correlation(g, a, layer, none)
    if layer.padding_mode != "zeros":
        around = layer._reversed_padding_repeated_twice
        return _Correlation(nn.functional.pad(a, around, mode=layer.padding_mode), g, layer, none)
    if layer.padding == "same":  # which may add more on one side than on the other
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        around = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        return _Correlation(nn.functional.pad(a, around), g, layer, none)
    return _Correlation(a, g, layer, none if layer.padding == "valid" else _each(layer.padding, len(kernel)))


def _padded(image: Tensor, padding: tuple[int, ...]) -> Tensor:
    if not any(padding):
        return image
    return nn.functional.pad(image, [side for n in reversed(padding) for side in (n, n)])


_conv_weight_by_adding = _by_adding(lambda layer, a, g: torch.cat(list(_correlate(layer, a, g).gradients())))


def _conv_weight(uses: Sequence[Use], batch: int, p: int, form: Form) -> Tensor:
    if len(uses) > 1 or uses[0].rows > 1:
        return _conv_weight_by_adding(uses, batch, p, form)
    correlation = _correlate(uses[0].layer, *uses[0].tensors())
    positions, layer = math.prod(correlation.positions.shape[2:]), correlation.layer
    entries = layer.weight.numel() // layer.groups  # of the gradient in one group
    wants_ghost = form == "ghost" or (form == "auto" and ghost_is_smaller(positions, entries))
    if p == 2 and wants_ghost:
        return correlation.ghost()
    return torch.cat([power_sum(gradient, p) for gradient in correlation.gradients()])


def _over_positions(tensor: Tensor) -> Tensor:
    """Sum `(rows, channels, ...)` over all but the first two axes."""
    return tensor.flatten(2).sum(2) if tensor.ndim > 2 else tensor


# Normalisation

_CACHED = 1 << 19
"""Numbers that a processor keeps close by."""


def _batch_norm_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    mean = layer.running_mean.to(a.dtype).view(1, -1, *(1,) * (a.ndim - 2))
    scale: Tensor = (layer.running_var.to(a.dtype) + layer.eps).rsqrt()
    # On a CPU a few samples at a time, which stay in the cache: measured twice as fast as the whole batch.
    rows = max(1, _CACHED // max(1, a[0].numel())) if a.device.type == "cpu" else len(a)
    pairs = zip(torch.split(a, rows), torch.split(g, rows), strict=True)
    return torch.cat([_over_positions((part - mean).mul_(gradient)) for part, gradient in pairs]) * scale


def _instance_norm_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    if layer.running_mean is not None:
        return _batch_norm_weight(layer, a, g)
    return _over_positions(g * nn.functional.instance_norm(a, eps=layer.eps))


def _group_norm_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    return _over_positions(g * nn.functional.group_norm(a, layer.num_groups, eps=layer.eps))


def _last_axes(layer: Any, product: Tensor) -> Tensor:
    """Sum over all axes between the rows and those that the layer normalises."""
    shape = layer.normalized_shape
    return product.reshape(product.shape[0], -1, *shape).sum(1)


def _layer_norm_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    return _last_axes(layer, g * nn.functional.layer_norm(a, layer.normalized_shape, eps=layer.eps))


def _rms_norm_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    return _last_axes(layer, g * nn.functional.rms_norm(a, layer.normalized_shape, eps=layer.eps))


def _prelu_weight(layer: Any, a: Tensor, g: Tensor) -> Tensor:
    product = g * a.clamp_max(0)
    if layer.weight.numel() == 1:
        return product.flatten(1).sum(1, keepdim=True)
    return _over_positions(product)


# Embeddings


def _embedding_weight(uses: Sequence[Use], batch: int, p: int, form: Form) -> Tensor:
    """Add the gradients of equal words within a sample, then take the norm over the words that occur."""
    number, width = uses[0].layer.weight.shape
    words = torch.cat([use.input.reshape(batch, -1) for use in uses], 1)
    gradients = torch.cat([_without_padding(use).reshape(batch, -1, width) for use in uses], 1)
    first = torch.arange(batch, device=words.device)[:, None] * number
    occurring, place = torch.unique(words + first, return_inverse=True)
    added = gradients.new_zeros(len(occurring), width).index_add_(0, place.flatten(), gradients.flatten(0, 1))
    sums = gradients.new_zeros(batch)
    return sums.index_add_(0, occurring // number, power_sum(added, p))


def _without_padding(use: Use) -> Tensor:
    """The gradient, 0 for the word that this layer (not another one with the same weight) does not learn."""
    gradient = use.tensors()[1]
    padding = use.layer.padding_idx
    return gradient if padding is None else gradient * (use.input != padding)[..., None]


_SHIFT = _by_adding(lambda layer, a, g: _over_positions(g))
_CONVOLUTION: dict[str, Rule] = {"weight": _conv_weight, "bias": _SHIFT}
_BATCH_NORM: dict[str, Rule] = {"weight": _by_adding(_batch_norm_weight), "bias": _SHIFT}
_INSTANCE_NORM: dict[str, Rule] = {"weight": _by_adding(_instance_norm_weight), "bias": _SHIFT}
_GROUP_NORM: dict[str, Rule] = {"weight": _by_adding(_group_norm_weight), "bias": _SHIFT}
_LAYER_NORM: dict[str, Rule] = {
    "weight": _by_adding(_layer_norm_weight),
    "bias": _by_adding(lambda layer, a, g: _last_axes(layer, g)),
}

_RULES: dict[type[nn.Module], dict[str, Rule]] = {
    nn.Linear: {"weight": _linear_weight, "bias": _linear_bias},
    **{kind: _CONVOLUTION for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)},
    **{kind: _CONVOLUTION for kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)},
    **{kind: _BATCH_NORM for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)},
    **{kind: _INSTANCE_NORM for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)},
    nn.GroupNorm: _GROUP_NORM,
    nn.LayerNorm: _LAYER_NORM,
    nn.RMSNorm: {"weight": _by_adding(_rms_norm_weight)},
    nn.PReLU: {"weight": _by_adding(_prelu_weight)},
    nn.Embedding: {"weight": _embedding_weight},
}

_ANY_AXIS = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Layers that treat all axes but the last alike, so that samples may lie along any of them."""


def rules_of(layer: nn.Module) -> dict[str, Rule]:
    """The rules for a layer's own parameters; empty where the layer may compute something else than its base class."""
    kind = _known_kind(layer)
    if kind is None or (isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq)):
        return {}
    return _RULES[kind]


def any_axis(layer: nn.Module) -> bool:
    """Whether samples may lie along another axis than the first."""
    return _known_kind(layer) in _ANY_AXIS


def _known_kind(layer: nn.Module) -> type[nn.Module] | None:
    """The class of the table whose `forward` this layer runs, unchanged."""
    return next((kind for kind in type(layer).__mro__ if kind in _RULES and _runs_forward_of(layer, kind)), None)


def _runs_forward_of(layer: nn.Module, kind: type[nn.Module]) -> bool:
    plain = all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in _COMPUTING)
    return plain and not vars(layer).keys() & _COMPUTING and not layer._forward_hooks and not layer._forward_pre_hooks


_COMPUTING = frozenset(("forward", "_conv_forward", "_apply_instance_norm", "_handle_no_batch_input"))
"""What decides on a layer's output."""


def accepts(layer: nn.Module, shape: torch.Size) -> bool:
    """Whether the rules hold for an input of this shape; some layers also take one without an axis of samples."""
    kind, ndim = _known_kind(layer), len(shape)
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return ndim > len(layer.normalized_shape)
    if isinstance(layer, (nn.Linear, nn.Embedding)):
        return ndim >= 1
    if kind is not None and kind.__name__[-2:] in ("1d", "2d", "3d") and not kind.__name__.startswith("BatchNorm"):
        return ndim == 2 + int(kind.__name__[-2])
    return ndim >= 2
