"""Per-sample gradient norms against plain autograd, one sample after the other, in double precision."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import cycle
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

from blemish.errors import ArgumentError
from blemish.features.packages import import_torchvision
from blemish.ops import layer_gradients
from blemish.ops.gradnorm import GradNorms, blocks, cross_entropy, per_sample_grad_norms
from reference import gradnorm as reference

torchvision = import_torchvision()

FORMS = ("auto", "ghost", "instantiate")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(model, seed=0):
    """Random parameters and statistics, so that no default of 0 or 1 hides a missing factor."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return model


def leaves(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [leaf for part in (output.values() if isinstance(output, dict) else output) for leaf in leaves(part)]


class Loss:
    """Another loss for each sample, over all of its outputs; sizes differ by powers of ten."""

    def __init__(self, batch, axis=0):
        self.size, self.axis = 10 ** random(batch, seed=9), axis

    def __call__(self, output):
        return self._losses(output, self.size)

    def one(self, output, i):
        return self._losses(output, self.size[i : i + 1])

    def _losses(self, output, size):
        total = 0
        for leaf in leaves(output):
            flat = leaf.double().movedim(self.axis, 0).reshape(len(size), -1)
            weight = torch.sin(0.7 * torch.arange(flat.shape[1]) + 1)
            total = total + (flat * weight).sum(1) + flat.square().sum(1) / 2
        return size * total


class Labels:
    """Cross entropy with a label for each sample."""

    def __init__(self, labels):
        self.labels = torch.as_tensor(labels)

    def __call__(self, output):
        return cross_entropy(self.labels)(output)

    def one(self, output, i):
        return F.cross_entropy(output, self.labels[i : i + 1])


def check(model, x, loss=None, *, tolerance=1e-10, **options):
    """All three groupings."""
    loss = loss or Loss(len(x))
    found = reference.gradients(model, x, loss.one)
    compare(model, x, loss, found, tolerance=tolerance, **options)


def compare(model, x, loss, found, *, tolerance=1e-10, **options):
    engine = GradNorms(model, **options)
    names = options.get("parameters") or [
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    p = 2 if options.get("norm", "l2") == "l2" else 1
    total = engine.norms(x, loss)
    expected = reference.norms(found, names, p)
    close(total, expected, tolerance)
    by_parameter = engine.norms(x, loss, by="parameter")
    assert set(by_parameter) == set(names)
    for name, values in by_parameter.items():
        close(values, reference.norms(found, [name], p), tolerance, noise=expected)
    of_block = blocks(model)
    by_block = engine.norms(x, loss, by="block")
    assert set(by_block) == {of_block[name] for name in names}
    for block, values in by_block.items():
        inside = [name for name in names if of_block[name] == block]
        close(values, reference.norms(found, inside, p), tolerance, noise=expected)


def close(values, expected, tolerance, noise=0.0):
    """Relative to each value; gradients that are 0 in exact arithmetic are noise beside the others."""
    assert values.dtype == torch.float64
    assert values.shape == expected.shape
    right = (values - expected).abs() <= tolerance * expected + tolerance / 100 * noise  # not of NaN
    assert right.all(), f"{values} instead of {expected}"


# One layer


options_of_norms = st.fixed_dictionaries({"norm": st.sampled_from(["l2", "l1"]), "form": st.sampled_from(FORMS)})
batches = st.integers(1, 3)


def check_layer(layer, x, **options):
    """A layer of parameters before and none behind; no fallback."""
    model = randomise(nn.Sequential(nn.PReLU() if x.is_floating_point() else nn.Identity(), layer, nn.Tanh()))
    check(model, x, uncovered="raise", **options)


@settings(max_examples=25)
@given(batches, st.lists(st.integers(1, 4), max_size=3), st.booleans(), options_of_norms)
def test_linear(batch, between, bias, options):
    check_layer(nn.Linear(3, 4, bias=bias), random(batch, *between, 3), **options)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    axes = st.tuples(*[st.integers(1, 4 if dims < 3 else 2)] * dims)
    groups = draw(st.integers(1, 3))
    kernel = draw(axes)
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["numbers", "numbers", "same", "valid"]))
    stride = (1,) * dims if padding == "same" else draw(st.tuples(*[st.integers(1, 3)] * dims))
    if padding == "numbers":
        padding = draw(st.tuples(*[st.integers(0, 2)] * dims))
    layer = getattr(nn, f"Conv{dims}d")(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(r, 3) + draw(st.integers(0, 2)) for r in reach]
    return layer, (layer.in_channels, *size)


@contextmanager
def all_at_once():
    """The form of convolutions for an accelerator."""
    with mock.patch.object(layer_gradients._Correlation, "gradients", lambda self: iter([self._batched()])):
        yield


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=70)
@given(convolutions(), batches, options_of_norms, st.booleans())
def test_convolution(layer_and_shape, batch, options, is_batched):
    layer, shape = layer_and_shape
    with all_at_once() if is_batched else nullcontext():
        check_layer(layer, random(batch, *shape), **options)


@st.composite
def transposed_convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * dims)) for _ in range(3))
    beyond = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size = [draw(st.integers(2, 3)) for _ in range(dims)]
    # at least one entry of output is to remain
    padding = tuple(
        draw(st.integers(0, min(2, ((n - 1) * s + (k - 1) * d + o) // 2)))
        for n, s, k, d, o in zip(size, stride, kernel, dilation, beyond, strict=True)
    )
    layer = getattr(nn, f"ConvTranspose{dims}d")(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        beyond,
        groups,
        draw(st.booleans()),
        dilation,
    )
    return layer, (layer.in_channels, *size)


@settings(max_examples=50)
@given(transposed_convolutions(), batches, options_of_norms, st.booleans())
def test_transposed_convolution(layer_and_shape, batch, options, is_batched):
    layer, shape = layer_and_shape
    with all_at_once() if is_batched else nullcontext():
        check_layer(layer, random(batch, *shape), **options)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=40)
@given(convolutions(), st.booleans())
def test_both_forms_of_a_convolutions_gradient_agree(layer_and_shape, is_transposed):
    layer, shape = layer_and_shape
    layer = layer.double()
    a = random(3, *shape)
    if is_transposed:
        dims = len(shape) - 1
        kind = getattr(nn, f"ConvTranspose{dims}d")
        layer = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            0,
            0,
            layer.groups,
            True,
            layer.dilation,
        ).double()
    correlation = layer_gradients._correlate(layer, a, random(*layer(a).shape, seed=1))
    torch.testing.assert_close(
        correlation._batched(), torch.cat(list(correlation._one_by_one())), rtol=1e-12, atol=1e-12
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("form", FORMS)
def test_same_padding_of_an_even_kernel(form):
    """It adds more on one side than on the other."""
    layer = nn.Conv2d(2, 4, (2, 4), padding="same", dilation=(1, 3), groups=2)
    check_layer(layer, random(2, 2, 5, 11), form=form)


@pytest.mark.parametrize("form", FORMS)
def test_sizes_that_were_set_afterwards(form):
    """A layer computes with the weight that it has, and takes one number for all axes."""
    layer = with_weight(nn.Conv2d(2, 3, 3, padding="valid"), 3, 2, 5, 2)
    layer.stride, layer.padding, layer.dilation = 2, (1,), 1
    check_layer(layer, random(2, 2, 6, 7), form=form)
    layer = with_weight(nn.ConvTranspose2d(2, 3, 3), 2, 3, 2, 4)
    layer.stride = 2
    check_layer(layer, random(2, 2, 4, 3), form=form)
    check_layer(with_weight(nn.Conv2d(2, 3, 3, padding="same"), 3, 2, 5, 1), random(2, 2, 6, 7), form=form)
    check_layer(with_weight(nn.PReLU(1), 3), random(2, 3, 4), form=form)


@settings(max_examples=20)
@given(st.integers(1, 3), st.booleans(), st.floats(1e-5, 1.0), options_of_norms)
def test_batch_norm(dims, is_flat, eps, options):
    size = () if is_flat and dims == 1 else (3, 2, 2)[:dims]
    check_layer(getattr(nn, f"BatchNorm{dims}d")(4, eps=eps), random(3, 4, *size), **options)


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(0, 3), options_of_norms)
def test_group_norm(groups, dims, options):
    check_layer(nn.GroupNorm(groups, 2 * groups, eps=0.1), random(3, 2 * groups, *(3, 2, 2)[:dims]), **options)


@settings(max_examples=20)
@given(st.integers(1, 3), st.booleans(), options_of_norms)
def test_instance_norm(dims, has_statistics, options):
    kind = getattr(nn, f"InstanceNorm{dims}d")
    layer = kind(4, eps=0.1, affine=True, track_running_stats=has_statistics)
    check_layer(layer, random(3, 4, *(3, 2, 2)[:dims]), **options)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 2), st.booleans(), options_of_norms)
def test_layer_norm(between, axes, bias, options):
    shape = (3, 4)[:axes]
    check_layer(nn.LayerNorm(shape, eps=0.1, bias=bias), random(3, *between, *shape), **options)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 2), st.sampled_from([None, 0.1]), options_of_norms)
def test_rms_norm(between, axes, eps, options):
    shape = (3, 4)[:axes]
    check_layer(nn.RMSNorm(shape, eps=eps), random(3, *between, *shape), **options)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), max_size=2), st.booleans(), options_of_norms)
def test_prelu(between, is_one, options):
    check_layer(nn.PReLU(1 if is_one else 4), random(3, 4, *between), **options)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from([None, 0, -1]),
    st.booleans(),
    options_of_norms,
)
def test_embedding(between, padding, is_sparse, options):
    ids = torch.randint(0, 4, (3, *between), generator=torch.Generator().manual_seed(sum(between)))
    check_layer(nn.Embedding(4, 3, padding_idx=padding, sparse=is_sparse), ids, **options)


# Structures


class Net(nn.Module):
    """A forward pass as a function of the network and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class Token(nn.Module):
    """Class token, position embedding and layer scale, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(torch.zeros(1, 4, 4))
        self.block = Scaled()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.block(x)[:, 0])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.gamma * self.mlp(self.norm(x)).tanh()


class InPlaceScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.mul_(self.gamma)


class OverwritesWhatItHasUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = x + self.gamma
        return y.sin() * x.mul_(2)


class Turned(nn.Module):
    """(B, T, C) -> (T, B, C)."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return (x * self.gamma).transpose(0, 1).tanh()


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 0.1), self.bias, padding=1)


class ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Renamed(nn.Linear):
    """A subclass that changes nothing is covered."""


class Residual(nn.Module):
    """In-place activations and sums as in torchvision."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.n, self.m = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        y = F.relu(self.n(self.a(x)), inplace=True)
        y = self.m(self.b(y))
        y += x
        return F.relu_(y)


def tied(a, b):
    b.weight = a.weight
    return {"a": a, "b": b}


def hooked(layer, hook):
    layer.register_forward_hook(hook)
    return layer


def pre_hooked(layer, hook):
    layer.register_forward_pre_hook(hook)
    return layer


def patched(layer):
    layer._conv_forward = lambda x, weight, bias: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
    return layer


def with_weight(layer, *shape):
    layer.weight = nn.Parameter(torch.zeros(*shape))
    return layer


def twice_at_two_sizes(net, x):
    return net.conv(x).flatten(1).sin().sum(1, keepdim=True) + net.conv(net.conv(x)[:, :, ::2]).flatten(1)


def in_no_gradient(net, x):
    with torch.no_grad():
        y = net.frozen(x)
    return net.fc(y + net.first(x))


def dead_call(net, x):
    net.fc(x)
    return F.linear(x, net.fc.weight, net.fc.bias)


def functional(net, x):
    return net.fc(x).tanh() + F.linear(x.cos(), net.fc.weight)


def last_layer_of_a_view(net, x):
    y = torch.zeros(len(x), 8, dtype=x.dtype)
    y[:, :4] = net.a(x)
    y[:, 4:] = net.b(y[:, :4].clone())
    y[:, 2:6].tanh_()
    return y


def time_first(net, x):
    """(T, B, C)."""
    return net.fc(net.norm(net.first(x.transpose(0, 1))).tanh()).transpose(0, 1).flatten(1)


def windows(net, x):
    """(B * windows, tokens, C)."""
    folded = net.first(x).reshape(len(x) * 2, -1, x.shape[2])
    return net.fc(net.norm(folded).tanh()).reshape(len(x), -1)


def windows_with_attention(net, x):
    folded = x.reshape(len(x) * 2, -1, x.shape[2])
    folded = folded + net.attention(folded, folded, folded, need_weights=False)[0]
    return net.fc(folded).reshape(len(x), -1)


def batch_minor(net, x):
    """(T * B, C)."""
    folded = x.transpose(0, 1).reshape(-1, x.shape[2])
    y = net.fc(net.norm(net.first(folded)).tanh())
    return y.reshape(x.shape[1], len(x), -1).transpose(0, 1).flatten(1)


def batch_minor_with_a_constant(net, x):
    """What of the samples differs, the other one of two tokens, lies where rows behind one another would lie, too."""
    tokens = torch.stack([torch.ones_like(x), x])
    return net.fc(net.norm(tokens.flatten(0, 1))).reshape(2, len(x), -1).transpose(0, 1).flatten(1).tanh()


def spatial(net, x):
    """(1, C, B, T)."""
    return net.norm(net.conv(x.transpose(0, 1)[None]))[0].transpose(0, 1)


def augmented(net, x):
    """Each image and its mirror image, one batch after the other."""
    y = net.conv(torch.cat([x, x.flip(3)])).tanh()
    return (y[: len(x)] * y[len(x) :]).flatten(1)


def middle(net, x):
    """(rows, B, columns) on one axis."""
    y = net.fc(x.reshape(len(x), 2, -1, x.shape[2]).transpose(0, 1).reshape(-1, x.shape[2])).tanh()
    return y.reshape(2, len(x), -1).transpose(0, 1).flatten(1)


def reversed_order(net, x):
    return net.fc(x.flip(0)).flip(0)


def sorted_order(net, x):
    order = x[:, 0].argsort()
    return net.fc(x[order])[order.argsort()]


def positions(net, x):
    return (net.word(x) + net.place(torch.arange(x.shape[1]))).tanh() @ net.word.weight.T


def squeezed(net, x):
    return net.fc(net.norm(x[:, :, None, None]).squeeze()).reshape(len(x), -1)


def checkpointed(net, x):
    return net.c(checkpoint.checkpoint(lambda y: net.b(y).tanh(), net.a(x), use_reentrant=False))


def own_input(net, x):
    x.sub_(0.5)
    x[:, 0] = x[:, 0].exp()
    return net.fc(x)


def weight_as_input(net, x):
    return x @ net.fc(net.fc.weight)


def recurrent(net, x):
    state = torch.zeros(len(x), 4, dtype=x.dtype)
    for t in range(x.shape[1]):
        state = net.cell(torch.cat([x[:, t], state], 1)).tanh()
    return state


def chosen_tokens(net, x):
    return net.fc(net.first(x)[:, torch.tensor([2, 0])])


def chosen_by_content(net, x):
    y = net.first(x)
    return net.fc(y[torch.arange(len(x)), x[..., 0].argmax(1)])


def matrices():
    return {"first": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "fc": nn.Linear(4, 3)}


class Case(NamedTuple):
    build: object
    shape: tuple = (3, 4)
    covered: bool = True
    fallbacks: tuple = ("vmap", "loop")


IDS = "ids"
LOOP = ("loop",)
SELF_ATTENTION = {"embed_dim": 4, "num_heads": 2}
CASES = {
    "used twice": Case(lambda: Net(lambda n, x: n.fc(n.fc(x).tanh()), fc=nn.Linear(4, 4))),
    "used at two sizes": Case(lambda: Net(twice_at_two_sizes, conv=nn.Conv2d(2, 2, 3, padding=1)), (3, 2, 6, 5)),
    "used with and without time": Case(
        lambda: Net(lambda n, x: n.fc(x).tanh().sum(1) + n.fc(x[:, 0].sin()), fc=nn.Linear(4, 3)), (3, 5, 4)
    ),
    "norms used twice": Case(
        lambda: Net(
            lambda n, x: n.n(n.m(n.n(n.m(x).sin()))),
            n=nn.BatchNorm2d(4),
            m=nn.GroupNorm(2, 4),
        ),
        (3, 4, 2, 3),
    ),
    "recurrent": Case(lambda: Net(recurrent, cell=nn.Linear(8, 4)), (3, 5, 4)),
    "tied linear": Case(lambda: Net(lambda n, x: n.b(n.a(x).tanh()), **tied(nn.Linear(4, 4), nn.Linear(4, 4)))),
    "tied convolutions": Case(
        lambda: Net(lambda n, x: n.b(n.a(x).tanh()), **tied(nn.Conv2d(2, 4, 3, 2), nn.ConvTranspose2d(4, 2, 3, 2))),
        (3, 2, 5, 7),
    ),
    "tied embeddings, one with padding": Case(
        lambda: Net(
            lambda n, x: (n.a(x).tanh() * n.b(x)).sum(1), **tied(nn.Embedding(5, 3, padding_idx=1), nn.Embedding(5, 3))
        ),
        IDS,
    ),
    "tied embedding and linear": Case(
        lambda: Net(lambda n, x: n.b(n.a(x).tanh()), **tied(nn.Embedding(5, 4), nn.Linear(4, 5))), IDS, False
    ),
    "tied norm": Case(lambda: Net(lambda n, x: n.b(n.a(x)), **tied(nn.LayerNorm(4), nn.LayerNorm(4, eps=0.3)))),
    "in place": Case(lambda: nn.Sequential(Residual(), Residual()), (3, 4, 5, 5)),
    "in-place activations": Case(
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(True), nn.Linear(5, 5), nn.SiLU(True), nn.Linear(5, 2))
    ),
    "own input overwritten": Case(lambda: Net(own_input, fc=nn.Linear(4, 4))),
    "own input overwritten, fallback": Case(
        lambda: Net(lambda n, x: x.mul_(2) * n.w, w=nn.Parameter(torch.zeros(4))), covered=False
    ),
    "views": Case(lambda: Net(last_layer_of_a_view, a=nn.Linear(4, 4), b=nn.Linear(4, 4))),
    "raw parameters": Case(Token, (3, 3, 4), False),
    "layer that overwrites its input": Case(
        lambda: nn.Sequential(nn.Linear(4, 4), InPlaceScale(), nn.Linear(4, 2)), covered=False
    ),
    "layer that overwrites its input, used before": Case(
        lambda: nn.Sequential(nn.Linear(4, 4), OverwritesWhatItHasUsed(), nn.Linear(4, 2)), covered=False
    ),
    "first layer that overwrites its input, used before": Case(
        lambda: nn.Sequential(OverwritesWhatItHasUsed(), nn.Linear(4, 2)), covered=False
    ),
    "layer that moves the axis of samples": Case(
        lambda: Net(lambda n, x: n.fc(n.scale(n.fc(x)).transpose(0, 1)), fc=nn.Linear(4, 4), scale=Turned()),
        (3, 3, 4),
        False,
    ),
    "functional use": Case(lambda: Net(functional, fc=nn.Linear(4, 4)), covered=False),
    "functional use beside a call without effect": Case(lambda: Net(dead_call, fc=nn.Linear(4, 3)), covered=False),
    "forward called past the hooks": Case(
        lambda: Net(lambda n, x: n.fc.forward(x) + n.fc(x), fc=nn.Linear(4, 3)), covered=False
    ),
    "weight as input of its own layer": Case(lambda: Net(weight_as_input, fc=nn.Linear(4, 4)), covered=False),
    "weight returned": Case(lambda: Net(lambda n, x: (n.fc(x), n.fc.weight.detach()), fc=nn.Linear(4, 3)), (1, 4)),
    "weight returned, with its gradient": Case(
        lambda: Net(lambda n, x: (n.fc(x), n.fc.weight), fc=nn.Linear(4, 3)), (1, 4), False
    ),
    "weight norm": Case(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()), covered=False),
    "spectral norm": Case(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), nn.Tanh()), (3, 2, 5, 5), False
    ),
    "attention": Case(
        lambda: Net(
            lambda n, x: n.fc(n.a(x, x, x)[0]),
            a=nn.MultiheadAttention(**SELF_ATTENTION, batch_first=True),
            fc=nn.Linear(4, 2),
        ),
        (3, 5, 4),
        False,
    ),
    "attention, time first": Case(
        lambda: Net(
            lambda n, x: n.fc(n.a(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1)),
            a=nn.MultiheadAttention(**SELF_ATTENTION),
            fc=nn.Linear(4, 2),
        ),
        (3, 3, 4),
        False,
    ),
    "transformer": Case(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 2, enable_nested_tensor=False
        ),
        (3, 5, 4),
        False,
    ),
    "transformer layer, time first": Case(
        lambda: Net(lambda n, x: n.t(x.transpose(0, 1)).transpose(0, 1), t=nn.TransformerEncoderLayer(4, 2, 6)),
        (3, 3, 4),
        False,
    ),
    "windows": Case(lambda: Net(windows, **matrices()), (3, 6, 4)),
    "windows and attention": Case(
        lambda: Net(
            windows_with_attention,
            attention=nn.MultiheadAttention(**SELF_ATTENTION, batch_first=True),
            fc=nn.Linear(4, 2),
        ),
        (3, 6, 4),
        False,
    ),
    "time first": Case(lambda: Net(time_first, **matrices()), (3, 5, 4)),
    "time first, as many steps as samples": Case(lambda: Net(time_first, **matrices()), (3, 3, 4)),
    "time first, two steps": Case(lambda: Net(time_first, **matrices()), (2, 2, 4)),
    "batch-minor fold": Case(lambda: Net(batch_minor, **matrices()), (3, 5, 4), False),
    "batch-minor fold, as many steps as samples": Case(lambda: Net(batch_minor, **matrices()), (3, 3, 4), False),
    "batch-minor fold, two steps": Case(lambda: Net(batch_minor, **matrices()), (2, 2, 4), False),
    "batch-minor fold with a constant": Case(
        lambda: Net(batch_minor_with_a_constant, fc=nn.Linear(4, 3), norm=nn.LayerNorm(4)), (2, 4), False
    ),
    "batch in the middle of a fold": Case(lambda: Net(middle, fc=nn.Linear(4, 3)), (3, 4, 4), False),
    "batches behind one another": Case(lambda: Net(augmented, conv=nn.Conv2d(2, 3, 3)), (3, 2, 5, 5), False),
    "samples along a spatial axis": Case(
        lambda: Net(spatial, conv=nn.Conv2d(2, 2, (1, 3)), norm=nn.BatchNorm2d(2)), (3, 2, 5), False
    ),
    "samples in reverse order": Case(lambda: Net(reversed_order, fc=nn.Linear(4, 3)), covered=False),
    "samples sorted": Case(lambda: Net(sorted_order, fc=nn.Linear(4, 3)), covered=False),
    "tokens by constant places": Case(lambda: Net(chosen_tokens, **matrices() | {"norm": nn.Identity()}), (3, 3, 4)),
    "tokens by content": Case(
        lambda: Net(chosen_by_content, first=nn.Linear(4, 4), fc=nn.Linear(4, 3)), (3, 5, 4), False
    ),
    "LSTM": Case(
        lambda: Net(lambda n, x: n.fc(n.lstm(x)[0][:, -1]), lstm=nn.LSTM(4, 3, batch_first=True), fc=nn.Linear(3, 2)),
        (3, 5, 4),
        False,
        LOOP,
    ),
    "dict and tuple": Case(
        lambda: Net(lambda n, x: {"a": n.a(x), "b": (n.b(x), [n.a(x.sin())])}, a=nn.Linear(4, 3), b=nn.Linear(4, 2))
    ),
    "positions": Case(lambda: Net(positions, word=nn.Embedding(5, 3), place=nn.Embedding(4, 3)), IDS, False),
    "layer without effect": Case(
        lambda: Net(lambda n, x: (n.dead(x), n.fc(x))[1], dead=nn.Linear(4, 4), fc=nn.Linear(4, 3))
    ),
    "layer never called": Case(lambda: Net(lambda n, x: n.fc(x), dead=nn.Conv2d(4, 4, 3), fc=nn.Linear(4, 3))),
    "layer under no_grad": Case(
        lambda: Net(in_no_gradient, frozen=nn.Linear(4, 4), first=nn.Linear(4, 4), fc=nn.Linear(4, 3))
    ),
    "hook that changes an output": Case(
        lambda: nn.Sequential(hooked(nn.Linear(4, 4), lambda m, i, o: 3 * o.sin()), nn.Linear(4, 2)), covered=False
    ),
    "hook that changes an output by the weight": Case(
        lambda: nn.Sequential(hooked(nn.Linear(4, 4), lambda m, i, o: o * m.weight.sum()), nn.Linear(4, 2)),
        covered=False,
    ),
    "hook of a parent": Case(
        lambda: hooked(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), lambda m, i, o: o.sin()),
    ),
    "hook that changes an input": Case(
        lambda: nn.Sequential(nn.Linear(4, 4), pre_hooked(nn.Linear(4, 2), lambda m, i: (3 * i[0].sin(),))),
        covered=False,
    ),
    "standardised weight": Case(lambda: nn.Sequential(nn.Conv2d(2, 2, 3), Standardised(2, 3, 3)), (3, 2, 6, 6), False),
    "channels first": Case(lambda: nn.Sequential(ChannelsFirstNorm(2), nn.Conv2d(2, 3, 3)), (3, 2, 5, 5), False),
    "norm and activation": Case(lambda: nn.Sequential(NormAndActivation(2), nn.Conv2d(2, 3, 3)), (3, 2, 5, 5), False),
    "subclass without changes": Case(lambda: nn.Sequential(Renamed(4, 4), nn.Tanh(), Renamed(4, 2))),
    "patched convolution": Case(lambda: nn.Sequential(patched(nn.Conv2d(2, 3, 3))), (3, 2, 5, 5), False),
    "more words than the embedding was made with": Case(
        lambda: nn.Sequential(with_weight(nn.Embedding(2, 3), 5, 3), nn.Tanh()), IDS
    ),
    "dropout": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2))),
    "squeezed": Case(lambda: Net(squeezed, norm=nn.BatchNorm2d(4), fc=nn.Linear(4, 3)), covered=False),
    "squeezed, one sample": Case(
        lambda: Net(lambda n, x: n.fc(n.norm(x.squeeze())).reshape(1, -1), norm=nn.LayerNorm(4), fc=nn.Linear(4, 3)),
        (1, 4),
        False,
    ),
    "without an axis of samples": Case(
        lambda: Net(
            lambda n, x: torch.stack([n.norm(n.conv(one)) for one in x]).flatten(1),
            conv=nn.Conv1d(2, 3, 2),
            norm=nn.InstanceNorm1d(3, affine=True),
        ),
        (1, 2, 5),
        False,
    ),
    "checkpoint": Case(lambda: Net(checkpointed, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))),
    "expanded constant": Case(
        lambda: Net(
            lambda n, x: n.fc(x) + n.other(torch.ones(1, 4, dtype=x.dtype)).expand(len(x), -1),
            fc=nn.Linear(4, 3),
            other=nn.Linear(4, 3),
        ),
        covered=False,
    ),
}


def build(name):
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.build())
    if case.shape == IDS:
        return model, torch.tensor([[0, 1, 1, 2], [3, 1, 4, 4], [0, 1, 2, 3]]), case
    return model, random(*case.shape, seed=5), case


@pytest.mark.parametrize("name", CASES)
def test_structure(name):
    model, x, case = build(name)
    loss = Loss(len(x))
    found = reference.gradients(model, x, loss.one)
    ways = ("raise", *case.fallbacks) if case.covered else case.fallbacks
    # Every way, both norms and their pairs in turn: the norm is taken behind what the ways differ in.
    for norm, uncovered in [("l1", ways[0]), *zip(cycle(("l2", "l1")), ways)]:
        compare(model, x, loss, found, norm=norm, uncovered=uncovered)
    if not case.covered:
        with pytest.raises(ArgumentError, match="uncovered='raise'"):
            per_sample_grad_norms(model, x, loss, uncovered="raise")
    if "vmap" not in case.fallbacks:
        with pytest.raises(ArgumentError, match="uncovered='loop'"):
            per_sample_grad_norms(model, x, loss)


@pytest.mark.parametrize("name", CASES)
def test_samples_do_not_depend_on_their_batch(name):
    """Split, order, and what was scored before: one sample, a batch of equal samples."""
    model, x, case = build(name)
    loss = Loss(len(x))
    engine = GradNorms(model, uncovered=case.fallbacks[0])
    whole = engine.norms(x, loss)
    order = torch.arange(len(x)).flip(0)
    part = Loss(len(x))
    part.size = loss.size[order]
    close(engine.norms(x[order], part), whole[order], 1e-10)
    for first in (x[:1], torch.zeros_like(x), x[:1].expand_as(x)):
        engine = GradNorms(model, uncovered=case.fallbacks[0])
        engine.norms(first, Loss(len(first)))
        close(engine.norms(x, loss), whole, 1e-10)
    for i in range(len(x)):
        part.size = loss.size[i : i + 1]
        close(engine.norms(x[i : i + 1], part), whole[i : i + 1], 1e-10)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_output_with_time_first(length):
    """Also with as many steps as samples: each sample's loss has its own size."""
    model = randomise(Net(lambda n, x: n.fc(x.transpose(0, 1)), fc=nn.Linear(4, 3)))
    check(model, random(3, length, 4), Loss(3, axis=1), uncovered="raise")
    model = randomise(Net(lambda n, x: F.linear(x.transpose(0, 1), n.fc.weight), fc=nn.Linear(4, 3, bias=False)))
    check(model, random(3, length, 4), Loss(3, axis=1))


def test_output_with_rows_of_a_sample_behind_one_another():
    model = randomise(Net(lambda n, x: n.fc(x).flatten(0, 1), fc=nn.Linear(4, 3)))
    check(model, random(3, 2, 4), uncovered="raise")


def test_one_large_offset_does_not_hide_the_order_of_samples():
    model = randomise(Net(batch_minor, **matrices() | {"norm": nn.Identity()}))
    check(model, 100 + random(3, 5, 4) / 10)


def test_output_outside_the_loss_need_not_belong_to_samples():
    class First(Loss):
        def _losses(self, output, size):
            return super()._losses(output[0], size)

    model = randomise(Net(lambda n, x: (n.fc(x), n.fc.weight.norm(), x.mean(0), "text"), fc=nn.Linear(4, 3)))
    check(model, random(3, 4), First(3))


def test_model_may_be_one_layer():
    check(randomise(nn.Linear(4, 3)), random(3, 4), uncovered="raise")
    check(randomise(nn.Embedding(5, 3)), torch.tensor([3, 1, 1]), uncovered="raise")


def test_frozen_and_chosen_parameters():
    model = randomise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Token(), nn.Linear(3, 3)))
    x = random(3, 3, 4)
    model[0].weight.requires_grad_(False)
    model[2].token.requires_grad_(False)
    check(model, x)
    check(model, x, parameters=["3.weight", "0.weight"], uncovered="raise")  # frozen, but chosen
    check(model, x, parameters=["2.position", "2.block.gamma"])
    check(model, x, parameters=["2.block.gamma"], uncovered="loop")
    engine = GradNorms(model, parameters=iter(["3.bias", "0.bias", "3.bias"]))
    assert list(engine.norms(x, Loss(3), by="parameter")) == ["0.bias", "3.bias"]


def test_blocks_open_what_holds_nearly_everything():
    layers = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(10)]
    model = randomise(nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(4, 2)}))
    assert set(blocks(model).values()) == {*(f"body.{i}" for i in range(10)), "head"}
    assert blocks(Token())["token"] == "token"
    assert blocks(Token())["block.norm.weight"] == "block"
    assert set(blocks(torchvision.models.resnet18()).values()) == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"
    }  # fmt: skip


# Modes


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_called_in_another_mode(mode):
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(True), nn.Flatten(), nn.Linear(36, 3)))
    x, loss = random(3, 2, 5, 5), Loss(3)
    expected = per_sample_grad_norms(model, x, loss)
    with mode():
        assert torch.equal(per_sample_grad_norms(model, x, loss), expected)
        assert torch.equal(per_sample_grad_norms(model, x.clone(), loss), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype, form):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(2), nn.LayerNorm(9, eps=1.0))
    model = randomise(nn.Sequential(*model, nn.Linear(9, 4), nn.Flatten(), nn.Linear(16, 3))).to(dtype)
    x, labels = random(4, 2, 5, 5).to(dtype), Labels([0, 1, 2, 1])
    found = reference.gradients(copy.deepcopy(model).double(), x.double(), labels.one)
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float32: 1e-5}[dtype]
    compare(model, x, labels, found, tolerance=tolerance, form=form)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_reach_the_norms(form):
    """Products of inputs by inputs, or by gradients, would leave the range of float16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3))
    x, loss = random(4, 6, 4).float() * 300, Loss(4)
    expected = per_sample_grad_norms(model, x, loss)
    with torch.autocast("cpu", torch.float16):
        close(per_sample_grad_norms(model, x, loss, form=form), expected, 0.2)


@pytest.mark.parametrize("gap", [0.0, 10.0, 60.0, 120.0, 500.0])
def test_confident_float32_samples(gap):
    """p - e_y for logits (gap, 0, 0, 0), by hand; p_y rounds to 1 from a gap of 17 on."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([gap, 0, 0, 0]))
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.5]])
    other = math.exp(-gap) / (1 + 3 * math.exp(-gap))
    size = torch.tensor([1 + 14, 1 + 0.25], dtype=torch.float64).sqrt()
    assert other > 0
    close(per_sample_grad_norms(model, x, cross_entropy()), other * math.sqrt(9 + 3) * size, 1e-6)
    sums = torch.tensor([1 + 6, 1 + 0.5], dtype=torch.float64)
    close(per_sample_grad_norms(model, x, cross_entropy(), norm="l1"), other * 6 * sums, 1e-6)
    labels = torch.zeros(2, dtype=torch.long)
    close(per_sample_grad_norms(model, x, cross_entropy(labels)), other * math.sqrt(9 + 3) * size, 1e-6)
    shared = per_sample_grad_norms(model, x, cross_entropy(temperature=2.0))
    other = math.exp(-gap / 2) / (1 + 3 * math.exp(-gap / 2)) / 2
    close(shared, other * math.sqrt(9 + 3) * size, 1e-6)


class Faint(torch.autograd.Function):
    """Scales gradients only."""

    @staticmethod
    def forward(ctx, y, exponent):
        ctx.exponent = exponent
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2.0**ctx.exponent, None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [nn.Linear, lambda n, m: nn.Conv1d(n, m, 1), lambda n, m: nn.Conv1d(n, m, 2)])
@pytest.mark.parametrize("exponent", [-110, -80, 80, 110])
def test_gradients_whose_squares_leave_float32(make, form, exponent):
    """As in front of a saturated softmax inside the network, where scaling the loss cannot help."""
    torch.manual_seed(0)
    layer, x, loss = make(4, 4), random(3, 4, 4).float(), Loss(3)
    found = reference.gradients(copy.deepcopy(layer).double(), x.double(), loss.one)
    model = Net(lambda n, x: Faint.apply(n.layer(x), exponent), layer=layer)
    for name, values in GradNorms(model, form=form).norms(x, loss, by="parameter").items():
        expected = reference.norms(found, [name.removeprefix("layer.")], 2)
        close(values, expected * 2.0**exponent, 1e-5)


def test_network_that_ends_in_a_saturated_softmax():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.LogSoftmax(1))
    with torch.no_grad():
        model[1].bias[2] = 70
    x = random(3, 4).float()

    def loss(output, i=None):
        return -output[:, 2]

    found = reference.gradients(copy.deepcopy(model).double(), x.double(), loss)
    expected = reference.norms(found, ["0.weight"], 2)
    assert (expected > 0).all()
    close(per_sample_grad_norms(model, x, loss, parameters=["0.weight"]), expected, 1e-4)


def test_zero_gradient():
    model = randomise(nn.Sequential(nn.Linear(4, 4), Scaled()))
    weight = torch.tensor([0.0, 1.0, 0.0])
    values = per_sample_grad_norms(model, random(3, 4), lambda output: output.sum(1) * weight)
    assert torch.equal(values == 0, weight == 0)
    assert torch.equal(
        per_sample_grad_norms(model, random(3, 4), lambda output: output.sum(1) * 0), torch.zeros(3).double()
    )


def test_input_overwritten_after_the_layer_saw_it():
    """Plain autograd refuses this; the same network without changes in place is the reference."""

    def in_place(net, x):
        x = net.first(x)
        y = net.norm(net.second(x))
        x.mul_(3).add_(1)
        y += x
        return y.tanh()

    def apart(net, x):
        x = net.first(x)
        return (net.norm(net.second(x)) + (3 * x + 1)).tanh()

    layers = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}
    model = randomise(Net(in_place, **layers))
    loss = Loss(3)
    found = reference.gradients(Net(apart, **layers), random(3, 4), loss.one)
    for form in FORMS:
        compare(model, random(3, 4), loss, found, form=form, uncovered="raise")


def test_loss_may_weigh_the_cross_entropy():
    model, x, labels, weight = randomise(Token()), random(3, 3, 4), torch.tensor([0, 2, 2]), 10 ** random(3)

    def loss(output):
        return weight * cross_entropy(labels, temperature=3.0)(output) + output.square().sum(1)

    def one(output, i):
        return weight[i] * F.cross_entropy(output / 3, labels[i : i + 1]) + output.square().sum()

    compare(model, x, loss, reference.gradients(model, x, one))


def test_places_are_learnt_from_the_first_batch_that_shows_them():
    """A batch of one word only shows nothing."""
    model = randomise(Net(lambda n, x: n.word(x.flatten()).view(*x.shape, 3).sin(), word=nn.Embedding(5, 3)))
    engine, loss = GradNorms(model, uncovered="raise"), Loss(2)
    with pytest.raises(ArgumentError, match="uncovered"):
        engine.norms(torch.full((2, 3), 4), loss)
    x = torch.tensor([[0, 1, 1], [4, 4, 4]])
    close(engine.norms(x, loss), reference.norms(reference.gradients(model, x, loss.one), ["word.weight"], 2), 1e-10)
    check(model, torch.full((2, 3), 4))


def test_transformer_in_front_of_a_chosen_parameter():
    """Nothing in there needs gradients, so that torch would take its fused way."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = randomise(Net(lambda n, x: F.linear(n.t(x), n.w), t=layer, w=nn.Parameter(torch.ones(3, 4))))
    check(model, random(3, 5, 4), parameters=["w"])
    check(model, random(3, 5, 4), parameters=["t.linear1.weight"], uncovered="raise")
    check(model, random(3, 5, 4), parameters=["t.norm2.weight"], uncovered="raise")


def test_integer_input_and_batch_of_one():
    model = randomise(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)))
    ids = torch.tensor([[1, 1, 8], [0, 2, 1]], dtype=torch.int32)
    check(model, ids, uncovered="raise")
    check(model, ids[:1].long(), uncovered="raise")


# Refusals


def refused(model, x, match, *, loss=None, **options):
    with pytest.raises(ArgumentError, match=match):
        per_sample_grad_norms(model, x, loss or Loss(len(x)), **options)


def linear():
    return randomise(nn.Sequential(nn.Linear(4, 3)))


def test_batch_norm_without_statistics():
    class Renamed(nn.BatchNorm1d):
        pass

    Renamed.__name__ = "Norm"
    for kind in (nn.BatchNorm1d, Renamed):
        refused(nn.Sequential(nn.Linear(4, 4), kind(4, track_running_stats=False)).double(), random(3, 4), "running")


def test_samples_that_influence_each_other():
    for share in (1, 0.01):
        model = randomise(Net(lambda n, x: n.fc(x - share * x.mean(0)), fc=nn.Linear(4, 3)))  # noqa: B023
        refused(model, random(3, 4), "influence")
    refused(
        randomise(Net(lambda n, x: F.batch_norm(n.fc(x), None, None, training=True), fc=nn.Linear(4, 3))),
        random(3, 3, 4),
        "influence",
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrapped_compiled_and_scripted():
    model = linear()
    wrapped = [
        nn.DataParallel(model),
        torch.compile(model),
        nn.Sequential(torch.compile(model)),
        torch.jit.trace(model, random(1, 4)),
        nn.Sequential(torch.jit.trace(model, random(1, 4))),
    ]
    compiled = linear()
    compiled.compile()
    for one in (*wrapped, compiled):
        refused(one, random(3, 4), "plain module.*Pass the module that was compiled or wrapped")


def by_mean(net, x):
    return net.a(x) if x.mean() > 0 else net.b(x)


def by_mean_functional(net, x):
    y = net.a(x)
    return y + F.linear(x, net.a.weight) if x.mean() > 0 else y + x @ net.b.weight.T


def by_batch(net, x):
    y = net.a(x)
    return y + F.linear(x, net.a.weight) * (x.mean() > 10) if len(x) < 3 else y + F.linear(x, net.b.weight)


def by_order(net, x):
    return net.a(net.b(x)) if x.mean() > 0 else net.b(net.a(x))


def past_the_hooks(net, x):
    return net.a(x) + (net.b(x) if x.mean() > 0 else net.b.forward(x))


def steps_by_content(net, x):
    for _ in range(int(x.abs().sum() / len(x))):
        x = net.a(x).tanh()
    return net.b(x)


@pytest.mark.parametrize(
    "function", [by_mean, by_mean_functional, by_batch, by_order, past_the_hooks, steps_by_content]
)
def test_data_dependent_branches(function):
    model = randomise(Net(function, a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    x = torch.cat([random(1, 4).abs(), -5 * random(3, 4, seed=1).abs()])
    refused(model, x, "same layers for every batch")
    if function not in (by_batch, steps_by_content):
        engine = GradNorms(model, uncovered="loop")
        engine.norms(x[:2].abs(), Loss(2))
        with pytest.raises(ArgumentError, match="same layers"):
            engine.norms(-x[:2].abs(), Loss(2))
    loss = Loss(4)
    names = [name for name, _ in model.named_parameters()]
    expected = reference.norms(reference.gradients(model, x, loss.one), names, 2)
    for i in range(4):  # as the message says
        values = per_sample_grad_norms(model, x[i : i + 1], partial(loss.one, i=i), uncovered="loop")
        close(values, expected[i : i + 1], 1e-10)


def test_a_mixture_of_experts_goes_through_the_loop():
    """Tokens are routed by content: how many rows a sample has is another number in each batch."""

    def experts(net, x):
        mask = x[..., 0] > 0
        y = torch.zeros(*x.shape[:2], 3, dtype=x.dtype)
        y[mask], y[~mask] = net.a(x[mask]), net.b(x[~mask])
        return y

    model = randomise(Net(experts, a=nn.Linear(4, 3), b=nn.Linear(4, 3)))
    sign = torch.tensor([[-1, -1, 1, 1, 1], [-1, 1, 1, 1, 1], [-1, -1, -1, 1, 1]])
    x = random(3, 5, 4)
    x[..., 0] = x[..., 0].abs() * sign
    check(model, x, uncovered="loop")
    refused(model, x, "uncovered='loop'")


def test_reentrant_checkpoint():
    def forward(net, x):
        return net.c(checkpoint.checkpoint(net.b, net.a(x), use_reentrant=True))

    model = randomise(Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2)))
    refused(model, random(3, 4), "use_reentrant=False")
    check(model, random(3, 4), parameters=["a.weight", "c.bias"], uncovered="raise")


def test_checkpoint_of_the_first_layer():
    def forward(net, x):
        return net.b(checkpoint.checkpoint(lambda y: net.a(y).tanh(), x, use_reentrant=False))

    refused(randomise(Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2))), random(3, 4), "behind the first layer")


def test_forward_without_gradients():
    @torch.no_grad()
    def forward(net, x):
        return net.fc(x)

    refused(randomise(Net(forward, fc=nn.Linear(4, 3))), random(3, 4), "torch.no_grad")
    refused(randomise(Net(lambda n, x: n.fc(x).argmax(1), fc=nn.Linear(4, 3))), random(3, 4), "floating-point")


def test_tensors_kept_elsewhere_are_not_mistaken_for_a_samples_own():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight * self.condition

    def forward(net, x):
        net.scale.condition = x.sin()
        return net.fc(net.scale(x))

    def forward_with_gradient(net, x):
        net.scale.condition = net.first(x)
        return net.fc(net.scale(x))

    model = randomise(Net(forward, scale=Conditional(), fc=nn.Linear(4, 3)))
    refused(model, random(3, 4), "sample by itself", uncovered="loop")
    del model.scale.condition  # the last forward pass left it there
    check(model, random(1, 4))
    model = randomise(Net(forward_with_gradient, first=nn.Linear(4, 4), scale=Conditional(), fc=nn.Linear(4, 3)))
    model.scale.register_forward_hook(lambda module, inputs, output: delattr(module, "condition"))
    check(model, random(3, 4))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), Scaled])
def test_layer_that_was_changed_since_the_network_was_read(make):
    layer = make()
    model, x, loss = randomise(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2))), random(3, 4), Loss(3)
    engine = GradNorms(model)
    engine.norms(x, loss)
    handle = model[1].register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
    with pytest.raises(ArgumentError, match=r"another layer|a new hook"):
        engine.norms(x, loss)
    handle.remove()
    parametrizations.weight_norm(model[0])
    with pytest.raises(ArgumentError, match="another use"):
        engine.norms(x, loss)
    check(model, x)


def test_change_in_place_that_was_not_there_before():
    def forward(net, x):
        y = net.a(x)
        z = net.b(y)
        if len(x) > 2:
            y.mul_(2)
        return z

    refused(randomise(Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))), random(3, 4), "in place")


def test_losses():
    model, x = linear(), random(3, 4)
    for loss in (
        lambda output: output.sum(),
        lambda output: output,
        lambda output: output.sum(1)[:2],
        lambda output: output.sum(1, keepdim=True),
        lambda output: 1.0,
    ):
        refused(model, x, r"one number a sample, a tensor of shape \(3,\)", loss=loss)
    refused(model, x, "differentiate", loss=lambda output: output.detach().sum(1))
    refused(model, x, "finite", loss=lambda output: output.sum(1) * torch.tensor([1, math.nan, 1]))
    refused(model, x, "finite", loss=lambda output: output.sum(1) / 0)
    refused(model, x, "output alone", loss=lambda output: output.sum(1) + model[0].weight.square().sum())
    x[1, 2] = math.nan
    refused(model, x, "finite", loss=cross_entropy())
    model = randomise(Net(lambda n, x: (n.fc(x), n.fc.weight), fc=nn.Linear(4, 3)))
    refused(model, random(3, 4), "along one axis", loss=lambda output: output[0].sum(1) * output[1].sum())


def test_loss_of_tensors_from_inside():
    def forward(net, x):
        net.features = net.a(x)
        return net.b(net.features)

    model = randomise(Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2)))
    refused(model, random(3, 4), "output alone", loss=lambda output: output.sum(1) + model.features.sum(1))


def test_arguments():
    model, x = linear(), random(3, 4)
    refused(model, x, "norm", norm="max")
    refused(model, x, "form", form="fast")
    refused(model, x, "uncovered", uncovered="skip")
    refused(model, x, "by", by="layer")
    refused(model, x, "nowhere", parameters=["0.weight", "nowhere"])
    refused(model, x, "parameters", parameters=[])
    refused(model.requires_grad_(False), x, "parameters")
    for wrong in (x[:0], torch.tensor(1.0), None, [x]):
        with pytest.raises(ArgumentError, match="x: expected"):
            per_sample_grad_norms(linear(), wrong, lambda output: output.sum(1))


# What must stay as it was


class Everything(nn.Module):
    """A rule, a layer of its own, raw parameters, attention, buffers, dropout, modes and flags that differ."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.scale = Scaled()
        self.attention = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.raw = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 3)
        self.fails = False

    def forward(self, x):
        y = self.drop(self.norm(self.conv(x))).transpose(1, 2)
        y = self.attention(self.scale(y)) * self.raw
        if self.fails:
            raise KeyError("fails")
        return self.head(y[:, 0])


def snapshot(model, x):
    hooks = [
        (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
        for module in model.modules()
    ]
    return {
        "state": [value.clone() for value in model.state_dict().values()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "same gradients": [id(p.grad) for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random state": torch.get_rng_state(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "x": (x.clone(), x.requires_grad, x.grad, x._version),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(i, j) for i, j in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("uncovered", ["vmap", "loop", "raise"])
@pytest.mark.parametrize("failure", [None, "model", "loss", "shape", "backward"])
def test_nothing_stays_changed(uncovered, failure):
    model = randomise(Everything()).train()
    model.norm.eval()
    model.scale.norm.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    model.head.register_forward_hook(lambda module, inputs, output: None)
    model.fails = failure == "model"
    x = random(3, 2, 5).requires_grad_()

    def loss(output):
        if failure == "loss":
            raise KeyError("fails")
        return output.sum() if failure == "shape" else output.square().sum(1)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("fails")

    if failure == "backward":
        model.drop.register_forward_hook(lambda module, inputs, output: Fails.apply(output))
    torch.manual_seed(3)
    before = snapshot(model, x)
    with ExitStack() as stack:
        if failure or uncovered == "raise":
            stack.enter_context(pytest.raises((KeyError, ArgumentError)))
        per_sample_grad_norms(model, x, loss, uncovered=uncovered)
    after = snapshot(model, x)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_dropout_is_off_and_modes_stay():
    model = randomise(Everything()).train()
    model.norm.eval()
    x, loss = random(3, 2, 5), Loss(3)
    expected = per_sample_grad_norms(copy.deepcopy(model).eval(), x, loss)
    assert torch.equal(per_sample_grad_norms(model, x, loss), expected)
    check(model, x)
    assert model.drop.training
    assert not model.norm.training


def test_layers_that_act_on_a_change_of_mode_are_left_alone():
    """Some merge their weights in eval mode, and split them again in train mode."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            with torch.no_grad():
                self.weight.mul_(0.5)
            return super().train(mode)

    model = randomise(nn.Sequential(Merging(4, 3)))
    weight = model[0].weight.clone()
    per_sample_grad_norms(model, random(3, 4), Loss(3))
    assert torch.equal(model[0].weight, weight)


def test_a_recurrent_network_can_be_copied_afterwards():
    model, x, _ = build("LSTM")
    per_sample_grad_norms(model, x, Loss(3), uncovered="loop")
    with pytest.raises(ArgumentError, match="loop"):
        per_sample_grad_norms(model, x, Loss(3))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_input_is_left_alone():
    model = randomise(Net(own_input, fc=nn.Linear(4, 3)))
    x = random(3, 4)
    before = x.clone()
    per_sample_grad_norms(model, x, Loss(3))
    assert torch.equal(x, before)


# Well-known networks


def timm(name, **options):
    from timm import create_model

    return create_model(name, num_classes=10, **options)


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 64, True),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), 32, True),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(num_classes=10), 64, True),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 64, True),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(num_classes=10), 64, False),
    "swin_t": (lambda: torchvision.models.swin_t(num_classes=10), 64, False),
    "timm vit_tiny": (lambda: timm("vit_tiny_patch16_224", img_size=64), 64, False),
    "timm swin_tiny": (lambda: timm("swin_tiny_patch4_window7_224", img_size=56), 56, False),
}


SLOW = ("convnext_tiny", "swin_t", "timm swin_tiny", "densenet121")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.heavy if name in SLOW else ()) for name in NETWORKS]
)
def test_network(name):
    make, side, is_covered = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double().train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    x, labels = random(2, 3, side, side), Labels([7, 2])
    found = reference.gradients(model, x, labels.one)
    engine = GradNorms(model, uncovered="raise" if is_covered else "vmap")
    names = [name for name, _ in model.named_parameters()]
    expected = reference.norms(found, names, 2)
    for parameter, values in engine.norms(x, labels, by="parameter").items():
        close(values, reference.norms(found, [parameter], 2), 1e-10, noise=expected)
    assert model.training
