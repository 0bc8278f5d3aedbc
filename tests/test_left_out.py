"""Scores of learned images by the model without them: against refits, and against the formulas in plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.methods import KNN, SPADE, GaussianAD, LeavesOut, PaDiM, PatchCore, Subspace
from blemish.ops.gaussian import Moments
from blemish.ops.shrinkage import ShrinkageSums
from contract.laws import Images, batch
from reference import gaussian as reference_gaussian
from reference import padim as reference_padim
from small import BACKBONE, small_pixels

IMAGES = 11
METHODS = {
    "knn": (KNN, {"k": 3}),
    "knn, of length 1": (KNN, {"normalise": True}),
    "spade": (SPADE, {"k": 4}),
    "patchcore": (PatchCore, {"ratio": 1.0, "top_share": 0.1}),
    "patchcore, reweight": (PatchCore, {"ratio": 1.0, "reweight": 3}),
    "gaussian": (GaussianAD, {}),
    "gaussian, pca": (GaussianAD, {"components": "pca", "variance": 0.9}),
    "gaussian, npca": (GaussianAD, {"components": "npca", "variance": 0.3}),
    "padim, fewer images than dimensions": (PaDiM, {"reduction": "none"}),
    "padim, more": (PaDiM, {"dimensions": 5}),
    "padim, its own regulariser": (PaDiM, {"reduction": "none", "eps": 0.01}),
    "padim, more, its own regulariser": (PaDiM, {"dimensions": 5, "eps": 0.01}),
    "subspace": (Subspace, {"variance": 0.9}),
}


def pixels(n=IMAGES, seed=1):
    """Small pictures, the last of which is far from the others."""
    made = small_pixels(n, seed)
    made[-1] = made[-1] * 0.2 + 0.7
    return made


def fitted(name, images):
    kind, parameters = METHODS[name]
    return kind(backbone=BACKBONE, **parameters).fit(Images(images))


def left_out(method, images, groups):
    found = [scores for _, scores in method.left_out(Images(images), groups)]
    maps = [scores.maps for scores in found if scores.maps is not None]
    return torch.cat([scores.images for scores in found]).numpy(), torch.cat(maps).numpy() if maps else None


@pytest.mark.parametrize("name", METHODS)
def test_left_out_equals_a_fit_without_the_image(name):
    images = pixels()
    found, maps = left_out(fitted(name, images), images, range(IMAGES))
    for i in range(IMAGES):
        alone = fitted(name, images[[j for j in range(IMAGES) if j != i]]).score(batch(images[i : i + 1]))
        # The refit's own factors and distances are rounded to float32.
        np.testing.assert_allclose(found[i], float(alone.images[0]), rtol=1e-5)
        if maps is not None:
            np.testing.assert_allclose(maps[i], alone.maps[0].numpy(), rtol=1e-4)


@pytest.mark.parametrize("name", ["knn", "spade", "patchcore"])
def test_groups_are_left_out_whole(name):
    images, groups = pixels(), [0, 1, 0, 2, 3, 3, 3, 4, 5, 6, 1]
    found, _ = left_out(fitted(name, images), images, groups)
    for i in range(IMAGES):
        rest = images[[j for j in range(IMAGES) if groups[j] != groups[i]]]
        np.testing.assert_allclose(
            found[i], float(fitted(name, rest).score(batch(images[i : i + 1])).images[0]), rtol=1e-5
        )


@pytest.mark.parametrize("name", ["padim, more", "gaussian", "subspace"])
def test_groups_that_cannot_be_left_out_are_refused(name):
    images = pixels()
    with pytest.raises(ArgumentError, match=r"groups of up to 2 of the 11 images, such as copies of a picture"):
        left_out(fitted(name, images), images, [0, 0, *range(1, 10)])


def test_a_coreset_loses_the_images_own_patches_and_is_not_chosen_again():
    images = pixels()
    method = PatchCore(backbone=BACKBONE, ratio=0.2).fit(Images(images))
    found, _ = left_out(method, images, range(IMAGES))
    patches = method._embed(method._maps(batch(images))).numpy()
    bank, owners = method.bank_.vectors().numpy(), method.owners_.numpy()
    for vector, owner in zip(bank, owners, strict=True):  # the owner is the image that has this patch
        assert (np.abs(patches[owner] - vector).max(axis=1) == 0).any()
    for i in range(IMAGES):
        rest = bank[owners != i]
        nearest = [min(np.sqrt(((patch - vector) ** 2).sum()) for vector in rest) for patch in patches[i]]
        np.testing.assert_allclose(found[i], max(nearest), rtol=1e-5)


@pytest.mark.parametrize("n", [4, 9, 30])  # the low-rank form, both near its edge, and the dense one
@pytest.mark.parametrize("ridge", [None, 0.001])
def test_distances_without_equal_the_formula(n, ridge):
    """In float64, with one image far out, and one position where two images are the same."""
    random = np.random.default_rng(n)
    rows = random.normal(size=(n, 6, 8)) * np.linspace(0.1, 3, 8)
    rows[0] *= 30
    rows[2, 5] = rows[1, 5]
    moments = Moments(6, 8, expected=n)
    moments.update(torch.from_numpy(rows).float())
    target = None
    if ridge is not None:
        pooled = moments.pooled()
        target = pooled + ridge * pooled.trace() / 8 * torch.eye(8, dtype=torch.float64)
    found = moments.whiten(0.3, target).distances_without(torch.from_numpy(rows).float(), ridge=ridge or 0.0)
    grid = rows.astype(np.float32).astype(np.float64).reshape(n, 2, 3, 8)
    for i in range(n):
        rest = np.delete(grid, i, axis=0)
        added = 0.3 * (np.eye(8) if ridge is None else reference_padim.typical(rest))
        expected = reference_padim.distances(rest, grid[i : i + 1], added)
        np.testing.assert_allclose(found[i].numpy().reshape(2, 3), expected[0], rtol=5e-6 if i else 1e-3)


@pytest.mark.parametrize("n", [5, 40])
def test_squared_distances_without_equal_the_formula(n):
    random = np.random.default_rng(n)
    rows = random.normal(size=(n, 6)) * np.linspace(0.1, 3, 6) + 5
    rows[0] += 20
    sums = ShrinkageSums.empty(6, torch.device("cpu"))
    sums.update(torch.from_numpy(rows))
    found = sums.squared_without(torch.from_numpy(rows)).sqrt().numpy()
    expected = [reference_gaussian.distances(np.delete(rows, i, axis=0), rows[i : i + 1])[0] for i in range(n)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_only_the_scores_of_exact_neighbours_inherit_a_bound():
    images = pixels()
    reasons = {name: fitted(name, images).unproven(range(IMAGES)) for name in METHODS}
    assert [name for name, reason in reasons.items() if not reason] == ["knn", "knn, of length 1", "spade", "patchcore"]
    assert SPADE(backbone=BACKBONE, k=50).fit(Images(images)).unproven(range(IMAGES))  # fewer without an image
    coreset = PatchCore(backbone=BACKBONE, ratio=0.5).fit(Images(images))
    assert coreset.unproven(range(IMAGES)) == "the coreset is chosen in view of every image"


@pytest.mark.parametrize("name", ["knn", "spade", "patchcore"])
def test_a_score_that_inherits_the_bound_never_shrinks_without_an_image(name):
    images, new = pixels(), batch(small_pixels(3, 9))
    whole = fitted(name, images).score(new).images
    for i in range(IMAGES):
        rest = fitted(name, images[[j for j in range(IMAGES) if j != i]])
        assert (rest.score(new).images >= whole * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (PatchCore(backbone=BACKBONE, turns=4), r"images that are learned turned as well \(turns=4\)"),
        (SPADE(backbone=BACKBONE, top_share=0.1), r"scores of maps \(top_share=0.1\)"),
        (KNN(backbone=BACKBONE, k=11), "k=11 neighbours of 10 images"),
    ],
    ids=["turns", "maps", "neighbours"],
)
def test_what_cannot_be_left_out_says_why(method, reason):
    assert isinstance(method, LeavesOut)
    images = pixels()
    with pytest.raises(ArgumentError, match=reason):
        left_out(method.fit(Images(images)), images, range(IMAGES))
