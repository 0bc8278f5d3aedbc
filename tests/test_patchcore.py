from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError, NotEnoughMemoryError
from blemish.features.patches import average_patches, unfolded_patches, unfolding_kernels
from blemish.methods import PatchCore, patchcore
from blemish.ops import coreset
from blemish.ops.coreset import CoresetStream, k_center
from blemish.types import FeatureMaps
from contract.laws import Images, batch
from reference import coreset as coreset_reference
from reference import patchcore as reference
from small import BACKBONE, layers, small_pixels

TAPS = ("b", "c")


def maps_of(pixels):
    return FeatureMaps(tuple(torch.from_numpy(layer) for layer in layers(pixels, TAPS)), (24, 24))


@pytest.mark.parametrize("channels", [(8, 10), (16, 5, 30), (3,)])
def test_embeddings_equal_the_paper(channels):
    random = np.random.default_rng(0)
    sides = (8, 4, 3)
    arrays = [random.normal(size=(2, c, s, s + 1)) for c, s in zip(channels, sides, strict=False)]
    features = FeatureMaps(tuple(torch.from_numpy(a).float() for a in arrays), (32, 32))
    np.testing.assert_allclose(average_patches(features).numpy(), reference.average_patches(arrays), atol=1e-5)
    for dimension in (7, 20):
        kernels = unfolding_kernels(channels, dimension)
        found = unfolded_patches(features, kernels, dimension).numpy()
        np.testing.assert_allclose(found, reference.official_patches(arrays, dimension, dimension), atol=1e-5)


@pytest.mark.parametrize("patches", ["average", "unfold"])
@pytest.mark.parametrize("reweight", [0, 4])
def test_equals_the_paper(patches, reweight):
    train, test = small_pixels(6, 1), small_pixels(3, 2)
    method = PatchCore(
        backbone=BACKBONE, patches=patches, dimensions=12, ratio=0.2, projection=0, reweight=reweight, sigma=2.0
    )
    scores = method.fit(Images(train)).score(batch(test))

    of_train, of_test = layers(train, TAPS), layers(test, TAPS)
    embed = reference.average_patches if patches == "average" else lambda x: reference.official_patches(x, 12, 12)
    vectors, queries = embed(of_train), embed(of_test)
    flat = vectors.reshape(-1, vectors.shape[2])
    chosen, radius = coreset_reference.greedy(flat, round(0.2 * len(flat)))
    bank = flat[chosen]
    assert method.radius_ == pytest.approx(radius, rel=1e-4)
    np.testing.assert_allclose(method.bank_.vectors().numpy(), bank, atol=1e-5)
    for i in range(3):
        assert float(scores.images[i]) == pytest.approx(reference.image_score(bank, queries[i], reweight), rel=1e-4)
        grid = reference.patch_scores(bank, queries[i])[0].reshape(6, 6)
        np.testing.assert_allclose(scores.maps[i].numpy(), reference.anomaly_map(grid, (24, 24), 2.0), rtol=1e-4)


@pytest.mark.parametrize(("parameters", "places"), [({}, 10), ({"top_share": 0.0}, 1), ({"top_share": 0.003}, 3)])
def test_an_image_is_judged_by_its_highest_places(parameters, places):
    train, test = small_pixels(2, 1, (128, 128)), small_pixels(2, 2, (128, 128))
    method = PatchCore(backbone=BACKBONE, count=40, **parameters).fit(Images(train))
    scores = method.score(batch(test)).images
    for found, query in zip(scores, reference.average_patches(layers(test, TAPS)), strict=True):
        distances = np.sort(reference.patch_scores(method.bank_.vectors().numpy(), query)[0])
        assert len(distances) == 32 * 32
        assert float(found) == pytest.approx(distances[-places:].mean(), rel=1e-4)


@pytest.mark.parametrize("patches", ["average", "single"])
def test_patches_of_length_one_in_a_bank_of_all_are_cosine_distances(patches):
    """AnomalyDINO's score: the mean of the highest 1 % of the cosine distances to the nearest normal patch."""
    train, test = small_pixels(3, 1), small_pixels(2, 2)
    settings = {"normalise": True, "squared": True, "top_share": 0.2}
    method = PatchCore(backbone=BACKBONE, patches=patches, ratio=1.0, **settings).fit(Images(train))
    scores = method.score(batch(test)).images

    embed = reference.average_patches if patches == "average" else reference.single_patches
    bank, queries = embed(layers(train, TAPS)), embed(layers(test, TAPS))
    for found, query in zip(scores, queries, strict=True):
        distances = sorted(reference.cosine_distances(bank.reshape(-1, bank.shape[2]), query), reverse=True)
        assert float(found) == pytest.approx(2 * np.mean(distances[: round(0.2 * len(distances))]), rel=1e-3)


def test_published_code_scores_squared_distances_and_begins_with_random_patches():
    train, test = Images(small_pixels(6, 1)), batch(small_pixels(3, 2))
    plain = PatchCore(backbone=BACKBONE, patches="unfold", dimensions=12, ratio=1.0).fit(train).score(test)
    paper = PatchCore(backbone=BACKBONE, **(PatchCore.paper | {"dimensions": 12, "ratio": 1.0})).fit(train).score(test)
    torch.testing.assert_close(paper.images, plain.images**2, rtol=1e-4, atol=0)
    begun = PatchCore(backbone=BACKBONE, ratio=0.1, starts=10, seed=1).fit(train)
    assert not torch.equal(
        begun.bank_.vectors(), PatchCore(backbone=BACKBONE, ratio=0.1, seed=1).fit(train).bank_.vectors()
    )


def test_stops_by_count_and_by_radius():
    train = Images(small_pixels(6, 1))
    assert len(PatchCore(backbone=BACKBONE, count=17).fit(train).bank_) == 17
    covered = PatchCore(backbone=BACKBONE, ratio=1.0, radius=0.5).fit(train)
    assert covered.radius_ <= 0.5
    assert len(covered.bank_) < covered.seen_
    covered.partial_fit(Images(small_pixels(6, 3)))
    assert covered.radius_ <= 0.5
    assert len(covered.bank_) < covered.seen_


def test_every_bank_scores_at_most_its_radius_above_the_complete_one():
    train, more, test = small_pixels(8, 1), small_pixels(5, 3), batch(small_pixels(4, 2))
    complete = PatchCore(backbone=BACKBONE, ratio=1.0, projection=0).fit(Images(torch.cat([train, more]))).score(test)
    updated = PatchCore(backbone=BACKBONE, ratio=0.2, projection=0).fit(Images(train))
    updated.partial_fit(Images(more))
    other = PatchCore(backbone=BACKBONE, ratio=0.2, projection=0).fit(Images(more))
    merged = PatchCore(backbone=BACKBONE, ratio=0.2, projection=0).fit(Images(train)).merge(other)
    for method in (updated, merged):
        assert method.seen_ == 13 * 36
        assert len(method.bank_) == round(0.2 * 13 * 36)
        excess = method.score(test).images - complete.images
        assert float(excess.min()) >= -1e-5
        assert float(excess.max()) <= method.radius_


def test_compressed_banks_report_their_error():
    train, test = Images(small_pixels(8, 1)), batch(small_pixels(4, 2))
    exact = PatchCore(backbone=BACKBONE, ratio=0.5).fit(train)
    assert (exact.storage_error_, exact.recall_) == (0.0, 1.0)
    for storage, least, most in (("float16", 1e-6, 5e-3), ("int8", 1e-4, 0.1)):
        method = PatchCore(backbone=BACKBONE, ratio=0.5, storage=storage).fit(train)
        assert least < method.storage_error_ < most
        assert 0.9 < method.recall_ <= 1
        torch.testing.assert_close(method.score(test).images, exact.score(test).images, rtol=most, atol=0)


@pytest.mark.parametrize("total", [None, 1000, 300], ids=["unknown", "announced", "understated"])
def test_stream_within_a_small_buffer_covers_all_within_its_radius(total):
    random = np.random.default_rng(0)
    vectors = torch.from_numpy(
        random.normal(size=(1000, 6)).astype(np.float32) * random.random((1000, 1)).astype(np.float32)
    )
    stream = CoresetStream(200, 6, total=total, wanted=40, project=lambda x: x, like=vectors)
    for part in vectors.split(64):
        stream.add(part)
        assert len(stream) <= 200
    chosen, radius = stream.finish(40)
    assert chosen.shape == (40, 6)
    true = float(torch.cdist(vectors, chosen).amin(dim=1).max())
    best = k_center(vectors, 40).radius
    assert true <= radius
    assert true <= 2 * best
    assert {tuple(row.tolist()) for row in chosen} <= {tuple(row.tolist()) for row in vectors}


def test_an_update_from_a_reserve_of_everything_covers_like_a_refit():
    train, more = small_pixels(8, 1), small_pixels(5, 3)
    options = {"ratio": 0.2, "projection": 0, "reserve": 5}
    whole = PatchCore(backbone=BACKBONE, **options).fit(Images(torch.cat([train, more])))
    grown = PatchCore(backbone=BACKBONE, **options).fit(Images(train)).partial_fit(Images(more))
    other = PatchCore(backbone=BACKBONE, **options).fit(Images(more))
    merged = PatchCore(backbone=BACKBONE, **options).fit(Images(train)).merge(other)
    seen = average_patches(maps_of(torch.cat([train, more]))).flatten(0, 1)
    for method in (grown, merged):
        apart = torch.cdist(seen, method.bank_.vectors())
        assert len(method.bank_) == len(whole.bank_)
        assert float(apart.amin(dim=0).max()) < 0.05 * whole.radius_  # seen patches, but for the rounding to int8
        assert float(apart.amin(dim=1).max()) <= method.radius_ < 1.1 * whole.radius_


@pytest.mark.parametrize("reserve", [0, 1, 4])
@pytest.mark.parametrize("size", [{"ratio": 0.05}, {"count": 12}])
def test_the_radius_covers_everything_seen_after_every_update(reserve, size):
    pixels = small_pixels(12, 1)
    method = PatchCore(backbone=BACKBONE, projection=0, reserve=reserve, **size).fit(Images(pixels[:4]))
    for part in (slice(4, 8), slice(8, 12)):
        copy = PatchCore(backbone=BACKBONE, projection=0, reserve=reserve, **size)
        copy.restore(method.state())
        copy.partial_fit(Images(pixels[part]))
        method.partial_fit(Images(pixels[part]))
        assert torch.equal(copy.bank_.vectors(), method.bank_.vectors())
        assert copy.radius_ == method.radius_
        seen = average_patches(maps_of(pixels[: part.stop])).flatten(0, 1)
        true = float(torch.cdist(seen, method.bank_.vectors()).amin(dim=1).max())
        assert true <= method.radius_ * (1 + 1e-5)
        assert len(method.bank_) == method._wanted(len(seen))
    stored = 0 if method.reserve_ is None else len(method.reserve_)
    assert stored <= 2 * reserve * len(method.bank_)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_the_radius_counts_what_compression_moves(storage, monkeypatch):
    """A bank of all patches would have the radius 0, but its patches are no longer where they were."""
    monkeypatch.setattr(patchcore, "_MOVED_PATCHES", 8)  # in several parts
    pixels = small_pixels(6, 1)
    seen = average_patches(maps_of(pixels)).flatten(0, 1)
    method = PatchCore(backbone=BACKBONE, projection=0, ratio=1.0, storage=storage).fit(Images(pixels))
    moved = torch.linalg.vector_norm(method.bank_.vectors() - seen, dim=1)
    assert method.radius_ == pytest.approx(float(moved.max()), rel=1e-5)
    assert float(moved[:8].max()) < float(moved.max())


def test_the_radius_of_the_reserve_counts_what_compression_moves():
    """This reserve holds all patches, in int8."""
    pixels = small_pixels(6, 1)
    seen = average_patches(maps_of(pixels)).flatten(0, 1)
    method = PatchCore(backbone=BACKBONE, projection=0, ratio=0.2, reserve=6).fit(Images(pixels))
    moved = torch.linalg.vector_norm(method.reserve_.vectors() - seen, dim=1)
    assert len(method.reserve_) == len(seen)
    assert method.reserve_radius_ == pytest.approx(float(moved.max()), rel=1e-5)


@pytest.mark.parametrize("reserve", [0, 2])
def test_what_is_learned_later_is_bounded_from_what_was_known_before(reserve):
    """New patches near each other, and a bank that takes all that is there: no radius but the old one is left."""
    coarse = PatchCore(backbone=BACKBONE, projection=0, count=3, reserve=reserve).fit(Images(small_pixels(6, 1)))
    known = coarse.radius_ if reserve == 0 else coarse.reserve_radius_
    fine = PatchCore(backbone=BACKBONE, projection=0, ratio=1.0, reserve=0).fit(Images(small_pixels(2, 3)))
    assert fine.radius_ == 0 < known
    for first, second in ((fine, coarse), (coarse, fine)):
        merged = PatchCore(backbone=BACKBONE, projection=0, ratio=1.0, reserve=reserve)
        merged.restore(first.state())
        assert merged.merge(second).radius_ == known
    grown = PatchCore(backbone=BACKBONE, projection=0, ratio=1.0, reserve=reserve)
    grown.restore(coarse.state())
    assert grown.partial_fit(Images(small_pixels(2, 3))).radius_ == known


def test_a_reserve_is_the_coreset_of_each_part(monkeypatch):
    monkeypatch.setattr(coreset, "_RESERVE_PART", 50)
    random = np.random.default_rng(0)
    old, new = torch.from_numpy(random.normal(size=(30, 6))).float(), torch.from_numpy(random.normal(size=(150, 6)))
    stream = CoresetStream(180, 6, total=180, wanted=30, project=lambda x: x, like=old)
    stream.add_coreset(old, 0.25)
    stream.add(new.float())
    vectors, radius = stream.reserve(60)
    parts = [(start, *coreset_reference.greedy(new.numpy()[start : start + 50], 10)) for start in (0, 50, 100)]
    expected = [old, *(new[[start + i for i in chosen]].float() for start, chosen, _ in parts)]
    assert torch.equal(vectors, torch.cat(expected))
    assert radius == pytest.approx(max(r for _, _, r in parts), rel=1e-5)


def test_equal_patches_make_a_bank_of_one():
    grey = Images(torch.full((4, 3, 24, 24), 0.5))
    method = PatchCore(backbone=BACKBONE, starts=10, count=5, reweight=3, taps=("c",)).fit(grey)
    assert 1 <= len(method.bank_) <= 5
    assert torch.isfinite(method.score(batch(small_pixels(1, 0))).images).all()


def test_models_that_do_not_belong_together_are_not_merged():
    train = Images(small_pixels(6, 1))
    first = PatchCore(backbone=BACKBONE, seed=0).fit(train)
    with pytest.raises(ArgumentError, match=r"other: expected a PatchCore with seed 0, got 1"):
        first.merge(PatchCore(backbone=BACKBONE, seed=1).fit(train))


def test_batches_in_a_list_are_not_taken_for_images():
    pixels = small_pixels(12, 1)
    listed = PatchCore(backbone=BACKBONE, ratio=0.2).fit([batch(part) for part in pixels.split(4)])
    counted = PatchCore(backbone=BACKBONE, ratio=0.2).fit(Images(pixels))
    assert torch.equal(listed.bank_.vectors(), counted.bank_.vectors())


def test_memory_is_planned(caplog):
    caplog.set_level("INFO", logger="blemish")
    PatchCore(backbone=BACKBONE, ratio=0.5).fit(Images(small_pixels(6, 1)))
    line = r"patchcore: 6 inputs of the network; model 0\.\d MB, peak 0\.\d MB beside the backbone; about \d+ (s|min)"
    assert re.search(line, caplog.text)
    with pytest.raises(
        NotEnoughMemoryError, match=r"patchcore: 6 inputs.*0\.\d MB are left.*Keep fewer patches than 108"
    ):
        PatchCore(backbone=BACKBONE, ratio=0.5, memory_gb=1e-3).fit(Images(small_pixels(6, 1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reweight", 1),
        ("index", "faiss:ivf256"),
        ("patches", "median"), ("ratio", 0.0), ("count", 0), ("projection", -1), ("radius", -1.0), ("reweight", 1.5),
        ("storage", "float8"), ("sigma", -1.0), ("dimensions", 0), ("starts", -1), ("reserve", -1),
    ],
)  # fmt: skip
def test_bad_parameters(name, value):
    with pytest.raises(ArgumentError, match=rf"{name}: expected .*, got {value}"):
        PatchCore(backbone=BACKBONE, **{name: value}).fit(Images(small_pixels(6, 1)))


def test_images_of_another_size_can_be_scored():
    method = PatchCore(backbone=BACKBONE).fit(Images(small_pixels(6, 1)))
    assert method.score(batch(small_pixels(2, 2, (40, 32)))).maps.shape == (2, 40, 32)


@pytest.mark.parametrize(
    ("parameters", "kept"), [({}, 288), ({"ratio": 0.01}, 3), ({"ratio": None, "count": 5}, 5), ({"ratio": 1.0}, 288)]
)
def test_few_images_keep_all_their_patches_unless_somebody_says_a_share(parameters, kept):
    method = PatchCore(backbone=BACKBONE, **parameters).fit(Images(small_pixels(8, 3)))
    assert (method.seen_, len(method.bank_)) == (288, kept)


@pytest.mark.parametrize(("total", "kept"), [(1, 1), (1_999, 1_999), (150_000, 2_000), (250_000, 2_500)])
def test_a_bank_has_a_hundredth_of_all_patches_and_two_thousand_at_least(total, kept):
    assert PatchCore()._wanted(total) == kept
    assert PatchCore(ratio=0.01)._wanted(total) == max(1, round(total / 100))
