from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.features.backbones import find_backbone
from blemish.methods import SPADE
from contract.laws import Images, batch
from reference import knn
from reference import spade as reference
from small import BACKBONE, layers, small_pixels

TAPS = ("a", "b")


def test_layers():
    row = find_backbone("resnet18")
    assert SPADE()._taps(row) == ("layer1", "layer2", "layer3", "layer4")
    assert SPADE(retrieval="layer3")._taps(row) == ("layer1", "layer2", "layer3")
    assert SPADE(retrieval="layer3", taps=("layer2",))._taps(row) == ("layer2", "layer3")


def test_a_layer_may_find_the_images_and_be_in_the_gallery():
    train, test = small_pixels(6, 1), small_pixels(3, 2)
    scores = SPADE(backbone=BACKBONE, k=2, sigma=2.0).fit(Images(train)).score(batch(test))
    of_train, of_test = layers(train), layers(test)
    pooled = knn.pool(of_train[-1]), knn.pool(of_test[-1])
    expected = reference.maps(of_train, of_test, *pooled, k=2, kappa=1, size=(24, 24), sigma=2.0)
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k", "kappa"), [(1, 1), (3, 1), (50, 1), (3, 2), (2, 40)])
def test_equals_the_paper(k, kappa):
    train, test = small_pixels(6, 1), small_pixels(3, 2)
    scores = SPADE(backbone=BACKBONE, taps=TAPS, k=k, kappa=kappa, sigma=2.0).fit(Images(train)).score(batch(test))
    of_train, of_test = layers(train), layers(test)
    pooled = knn.pool(of_train[-1]), knn.pool(of_test[-1])
    k = min(k, 6)
    expected = reference.maps(of_train[:-1], of_test[:-1], *pooled, k=k, kappa=kappa, size=(24, 24), sigma=2.0)
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.images.numpy(), reference.image_scores(*pooled, k), rtol=1e-4)


def test_a_map_does_not_fall_as_kappa_grows():
    train, test = Images(small_pixels(6, 1)), batch(small_pixels(3, 2))
    maps = [SPADE(backbone=BACKBONE, kappa=kappa).fit(train).score(test).maps for kappa in (1, 3, 9)]
    assert (maps[0] <= maps[1]).all()
    assert (maps[1] <= maps[2]).all()


def test_a_source_without_length_gives_the_same():
    pixels = small_pixels(6, 1)
    known, unknown = (SPADE(backbone=BACKBONE).fit(s) for s in (Images(pixels), iter_only(pixels)))
    test = batch(small_pixels(2, 2))
    assert torch.equal(known.score(test).maps, unknown.score(test).maps)


def iter_only(pixels):
    class Source:
        def __iter__(self):
            return iter(Images(pixels))

    return Source()


def test_half_precision_halves_the_gallery():
    train, test = Images(small_pixels(6, 1)), batch(small_pixels(2, 2))
    full, half = (SPADE(backbone=BACKBONE, storage=s).fit(train) for s in ("float32", "float16"))
    assert sum(t.nbytes for t in half.gallery_) * 2 == sum(t.nbytes for t in full.gallery_)
    torch.testing.assert_close(half.score(test).maps, full.score(test).maps, rtol=2e-2, atol=1e-3)


def test_test_images_may_have_another_size_but_new_normal_ones_may_not():
    method = SPADE(backbone=BACKBONE).fit(Images(small_pixels(6, 1)))
    assert method.score(batch(small_pixels(2, 2, (40, 32)))).maps.shape == (2, 40, 32)
    before = method.score(batch(small_pixels(2, 2)))
    with pytest.raises(ArgumentError, match=r"images: expected the same size as before"):
        method.partial_fit(Images(small_pixels(4, 3, (40, 32))))
    assert torch.equal(method.score(batch(small_pixels(2, 2))).maps, before.maps)


@pytest.mark.parametrize(("name", "value"), [("k", 0), ("kappa", 0), ("sigma", -1.0), ("storage", "float8")])
def test_bad_parameters(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}: expected .*, got {value}"):
        SPADE(backbone=BACKBONE, **{name: value}).fit(Images(small_pixels(6, 1)))
