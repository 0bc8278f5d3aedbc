"""The contract of `blemish.methods.Method` as executable laws.

Each law takes `make`, which builds a fresh unfitted method with the same parameters, and raises AssertionError where
the method breaks it. `test_methods.py` applies every law to every registered method; `test_laws.py` shows that each
law catches a method which breaks it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache

import pytest
import torch

from blemish.errors import ArgumentError, NotFittedError
from blemish.methods import Method
from blemish.types import ImageBatch, Scores

Make = Callable[[], Method]
SIDE = 64


class Images:
    """A re-iterable source of batches."""

    def __init__(self, pixels: torch.Tensor, batch_size: int = 4) -> None:
        self.pixels, self.batch_size = pixels, batch_size

    def __len__(self) -> int:
        return len(self.pixels)

    def __iter__(self):
        for start in range(0, len(self.pixels), self.batch_size):
            yield batch(self.pixels[start : start + self.batch_size])


def batch(pixels: torch.Tensor) -> ImageBatch:
    n = len(pixels)
    return ImageBatch(pixels, tuple(f"image {i}" for i in range(n)), ((SIDE, SIDE),) * n)


def normal_pixels(n: int, seed: int) -> torch.Tensor:
    """Smooth stripes whose brightness and position vary a little, with noise."""
    random = torch.Generator().manual_seed(seed)
    x = torch.arange(SIDE) / SIDE
    shift = torch.rand(n, 1, generator=random) * 0.05
    stripes = 0.5 + 0.2 * torch.sin(12 * (x + shift))[:, None, None, :]
    noise = 0.03 * torch.randn(n, 3, SIDE, SIDE, generator=random)
    return (stripes + noise + 0.05 * torch.rand(n, 1, 1, 1, generator=random)).clamp(0, 1)


def anomalous_pixels(n: int, seed: int) -> torch.Tensor:
    pixels = normal_pixels(n, seed)
    pixels[:, :, 20:36, 24:40] = 1 - pixels[:, :, 20:36, 24:40].flip(3)
    pixels[:, 0, 20:36, 24:40] = 0.95
    return pixels


TRAIN, MORE, TEST = normal_pixels(14, 1), normal_pixels(9, 2), torch.cat([normal_pixels(3, 3), anomalous_pixels(2, 4)])


def fitted(make: Make) -> Method:
    method = make()
    method.fit(Images(TRAIN))
    return method


@lru_cache(maxsize=2)  # laws come method by method
def known(make: Make) -> Method:
    """A fitted method that the laws which only look at one share; none of them may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fitted(make)


def own(make: Make) -> Method:
    """A copy of `known` for a law to change."""
    return copy.deepcopy(known(make))


@lru_cache(maxsize=2)
def known_scores(make: Make) -> Scores:
    """What `known` says before `other` exists."""
    return known(make).score(batch(TEST))


@lru_cache(maxsize=2)
def other(make: Make) -> Method:
    """One that has learned other images, after `known` has."""
    known_scores(make)
    method = make()
    method.fit(Images(MORE))
    return method


@lru_cache(maxsize=2)
def again(make: Make) -> tuple[Method, object]:
    """As `known`, but after another fit and under another global random state; and what `fit` gave."""
    method = copy.deepcopy(other(make))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return method, method.fit(Images(TRAIN))


def assert_same(a: Scores, b: Scores, *, exactly: bool = False) -> None:
    """Equal bit for bit, or to float32 rounding (a matrix product may round otherwise for another batch size)."""
    _assert_close(a.images, b.images, exactly=exactly)
    assert (a.maps is None) == (b.maps is None)
    if a.maps is not None:
        _assert_close(a.maps, b.maps, exactly=exactly)


def _assert_close(a: torch.Tensor, b: torch.Tensor, *, exactly: bool) -> None:
    # Rounding is relative to the terms of a sum: where they cancel, to a value near 0, it stays as large as they are.
    absolute = 1e-5 * max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=0.0 if exactly else 1e-4, atol=0.0 if exactly else absolute)


def law_constructor_only_stores(make: Make) -> None:
    method = make()
    extra = set(vars(method)) - {field.name for field in fields(method)}
    assert not [name for name in extra if isinstance(getattr(method, name), torch.Tensor | torch.nn.Module)]
    again = type(method)(**{field.name: getattr(method, field.name) for field in fields(method) if field.init})
    assert [getattr(again, f.name) for f in fields(again)] == [getattr(method, f.name) for f in fields(method)]


def law_fit_returns_self(make: Make) -> None:
    method, given = again(make)
    assert given is method


def law_scores_have_the_right_form(make: Make) -> None:
    scores = known(make).score(batch(TEST))
    assert scores.images.shape == (len(TEST),)
    assert scores.images.dtype == torch.float32
    assert torch.isfinite(scores.images).all()
    if scores.maps is not None:
        assert scores.maps.shape == (len(TEST), SIDE, SIDE)
        assert scores.maps.dtype == torch.float32


def law_larger_is_more_anomalous(make: Make) -> None:
    scores = known(make).score(batch(TEST))
    assert scores.images[3:].min() > scores.images[:3].max()
    if scores.maps is not None:
        inside, outside = scores.maps[3:, 24:32, 28:36].mean(), scores.maps[3:, :8].mean()
        assert inside > outside


def law_batch_mates_do_not_matter(make: Make) -> None:
    method = known(make)
    together = method.score(batch(TEST))
    for i in range(len(TEST)):
        maps = None if together.maps is None else together.maps[i : i + 1]
        assert_same(method.score(batch(TEST[i : i + 1])), Scores(together.images[i : i + 1], maps))


def law_order_does_not_matter(make: Make) -> None:
    method = known(make)
    forward, backward = method.score(batch(TEST)), method.score(batch(TEST.flip(0)))
    maps = None if backward.maps is None else backward.maps.flip(0)
    assert_same(forward, Scores(backward.images.flip(0), maps))


def law_scoring_is_pure(make: Make) -> None:
    method = own(make)
    pixels = TEST.clone()
    before = {name: tensor.clone() for name, tensor in method.state().items()}
    first = method.score(batch(pixels))
    assert_same(first, method.score(batch(pixels)), exactly=True)
    assert torch.equal(pixels, TEST), "score changed its input"
    after = method.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "score changed what was learned"


def law_a_fit_depends_on_its_images_and_the_seed_alone(make: Make) -> None:
    """Neither on the global random state nor on what was learned before."""
    second, _ = again(make)
    assert_same(known_scores(make), second.score(batch(TEST)), exactly=True)


def law_a_failed_fit_leaves_the_method_unfitted(make: Make) -> None:
    method = own(make)
    spoiled = MORE.clone()
    spoiled[-1, 0, 0, 0] = torch.nan  # in the last batch, so that the fit has begun
    with pytest.raises(ArgumentError):
        method.fit(Images(spoiled))
    with pytest.raises(NotFittedError):
        method.score(batch(TEST))


def law_models_do_not_interact(make: Make) -> None:
    before = known_scores(make)
    other(make)
    assert_same(before, known(make).score(batch(TEST)), exactly=True)


def law_restored_state_scores_identically(make: Make) -> None:
    method = known(make)
    layout = torch.contiguous_format  # a file's: another one may give other last digits
    state = {name: tensor.detach().clone(memory_format=layout) for name, tensor in method.state().items()}
    fresh = make()
    fresh.restore(state)
    assert_same(fresh.score(batch(TEST)), method.score(batch(TEST)), exactly=True)


def law_training_batches_do_not_matter(make: Make) -> None:
    method = make()
    method.fit(Images(TRAIN, len(TRAIN)))
    assert_same(method.score(batch(TEST)), known(make).score(batch(TEST)))  # in fours, which leaves a remainder


def law_errors_name_the_argument(make: Make) -> None:
    with pytest.raises(NotFittedError, match=r"fit"):
        make().score(batch(TEST))
    with pytest.raises(ArgumentError, match=r"images: expected at least"):
        make().fit(Images(TRAIN[:0]))
    spoiled = TRAIN.clone()
    spoiled[3, 0, 5, 5] = torch.nan
    with pytest.raises(ArgumentError, match=r"pixels: expected finite values in \[0, 1\]"):
        make().fit(Images(spoiled))
    method = known(make)
    with pytest.raises(ArgumentError, match=r"pixels: expected shape .* got an array of shape \(5, 1, 64, 64\)"):
        method.score(batch(TEST[:, :1]))
    with pytest.raises(ArgumentError, match=r"expected finite values in \[0, 1\].*255"):
        method.score(batch(TEST * 255))
    with pytest.raises(ArgumentError, match=r"ImageBatch"):
        method.score(copy.copy(TEST))  # type: ignore[arg-type]


LAWS = [value for name, value in sorted(globals().items()) if name.startswith("law_")]


def _updated_and_merged(make: Make) -> tuple[Method, Method]:
    updated, merged = own(make), own(make)
    updated.partial_fit(Images(MORE))  # type: ignore[attr-defined]
    merged.merge(copy.deepcopy(other(make)))  # type: ignore[attr-defined]
    return updated, merged


def law_update_equals_refit(make: Make) -> None:
    """For methods of the `Incremental` kind with `exact_update`: parts give the same model as the whole."""
    whole = make()
    whole.fit(Images(torch.cat([TRAIN, MORE])))
    for method in _updated_and_merged(make):
        assert_same(method.score(batch(TEST)), whole.score(batch(TEST)))


def law_update_comes_close(make: Make) -> None:
    """For the other methods of the `Incremental` kind: every image scores much as after a fit on everything."""
    whole = make()
    whole.fit(Images(torch.cat([TRAIN, MORE])))
    for method in _updated_and_merged(make):
        torch.testing.assert_close(method.score(batch(TEST)).images, whole.score(batch(TEST)).images, rtol=0.5, atol=0)


def law_failed_update_changes_nothing(make: Make) -> None:
    """For methods of the `Incremental` kind."""
    method = own(make)
    before = method.score(batch(TEST))
    spoiled = MORE.clone()
    spoiled[-1, 0, 0, 0] = torch.nan  # in the last batch, so that the update has begun
    with pytest.raises(ArgumentError):
        method.partial_fit(Images(spoiled))  # type: ignore[attr-defined]
    assert_same(method.score(batch(TEST)), before, exactly=True)


def law_untrained_is_where_it_begins(make: Make) -> None:
    """For methods that train: with 0 steps, or epochs, they are what they begin with, whatever the rate."""
    methods = [make() for _ in range(3)]
    length = "steps" if hasattr(methods[0], "steps") else "epochs"
    for method, changed in zip(methods, ({length: 0}, {length: 0, "rate": 10.0}, {"time_limit": 0.0}), strict=True):
        for name, value in changed.items():
            setattr(method, name, value)
        method.fit(Images(TRAIN))
    first, *others = (method.score(batch(TEST)) for method in methods)
    assert torch.isfinite(first.images).all()
    for other in others:
        assert_same(first, other, exactly=True)
