from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.features.backbones import find_backbone
from blemish.methods import KNN
from contract.laws import Images, batch
from reference import knn as reference
from small import BACKBONE, layers, small_pixels


@pytest.mark.parametrize(("k", "normalise"), [(1, False), (2, False), (5, False), (2, True)])
def test_equals_the_paper(k, normalise):
    train, test = small_pixels(12, 1), small_pixels(4, 2)
    scores = KNN(backbone=BACKBONE, k=k, normalise=normalise).fit(Images(train)).score(batch(test))
    pooled = [reference.pool(layers(pixels)[-1]) for pixels in (train, test)]
    if normalise:
        pooled = [reference.unit(vectors) for vectors in pooled]
    np.testing.assert_allclose(scores.images.numpy(), reference.scores(*pooled, k=k), rtol=1e-4)
    assert scores.maps is None


def test_reads_the_deepest_layer():
    assert KNN()._taps(find_backbone("resnet18")) == ("layer4",)
    assert KNN()._taps(find_backbone("filters")) == ("level3",)
    assert KNN()._taps(find_backbone("timm:resnet18")) == ("layer4",)
    assert KNN()._taps(find_backbone("timm:vit_tiny_patch16_224")) == ("blocks.11",)
    assert KNN(taps=("layer2",))._taps(find_backbone("resnet18")) == ("layer2",)


def test_images_of_another_size_can_be_scored():
    method = KNN(backbone=BACKBONE).fit(Images(small_pixels(6, 1)))
    assert method.score(batch(small_pixels(2, 2, (40, 32)))).images.shape == (2,)


def test_embeddings_of_length_1_grow_and_merge():
    pixels = small_pixels(12, 1)

    def fitted(some):
        return KNN(backbone=BACKBONE, normalise=True).fit(Images(some))

    whole, test = fitted(pixels), batch(small_pixels(4, 2))
    torch.testing.assert_close(whole.bank_.vectors().norm(dim=1), torch.ones(12))
    grown = fitted(pixels[:7]).partial_fit(Images(pixels[7:]))
    merged = fitted(pixels[:7]).merge(fitted(pixels[7:]))
    for method in (grown, merged):
        torch.testing.assert_close(method.score(test).images, whole.score(test).images)
    with pytest.raises(ArgumentError, match="other: expected a KNN with normalise True, got False"):
        whole.merge(KNN(backbone=BACKBONE).fit(Images(pixels)))


def test_bad_parameters():
    with pytest.raises(ArgumentError, match=r"k: expected a whole number of at least 1, got 0"):
        KNN(backbone=BACKBONE, k=0).fit(Images(small_pixels(6, 1)))
    with pytest.raises(ArgumentError, match=r"images: expected at least k = 7 normal images, got 6"):
        KNN(backbone=BACKBONE, k=7).fit(Images(small_pixels(6, 1)))


def test_scores_of_learned_images_are_small():
    train = small_pixels(6, 1)
    scores = KNN(backbone=BACKBONE, k=1).fit(Images(train)).score(batch(train))
    assert float(scores.images.max()) < 1e-10
    assert torch.isfinite(scores.images).all()
