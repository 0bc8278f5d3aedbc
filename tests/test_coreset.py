"""The batched greedy selection makes the choices of the plain loop, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.ops import coreset
from blemish.ops.coreset import CoresetStream, k_center
from reference import coreset as reference


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    """So few that every way through the code is taken on small data."""
    monkeypatch.setattr(coreset, "_CANDIDATES", 16)
    monkeypatch.setattr(coreset, "_ROWS", 100)


def clusters(n, d, seed):
    random = np.random.default_rng(seed)
    centres = random.normal(size=(10, d))
    return (centres[random.integers(0, 10, n)] + random.normal(size=(n, d)) * random.random((n, 1))).astype(np.float32)


def assert_same_choices(points, count, **options):
    expected, radius = reference.greedy(points.astype(np.float64), count, **options)
    if "initial" in options:
        options["initial"] = torch.from_numpy(options["initial"])
    found = k_center(torch.from_numpy(points), count, **options)
    assert found.indices.tolist() == expected
    assert found.radius == pytest.approx(radius, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "d", "count"), [(300, 5, 90), (300, 40, 200), (120, 3, 120), (15, 4, 9), (1, 3, 1)])
def test_choices_are_those_of_the_plain_loop(n, d, count, seed):
    assert_same_choices(clusters(n, d, seed), count)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 80), d=st.integers(1, 3), side=st.integers(1, 5), share=st.floats(0.01, 1), seed=st.integers(0, 9)
)
def test_ties_go_to_the_lowest_index(*, n, d, side, share, seed):
    lattice = np.random.default_rng(seed).integers(0, side, (n, d)).astype(np.float32)
    assert_same_choices(lattice, max(1, int(n * share)))


def test_duplicates_are_never_chosen():
    points = clusters(50, 6, 0)
    chosen = k_center(torch.from_numpy(np.concatenate([points, points[:30]])), 80)
    assert sorted(chosen.indices.tolist()) == list(range(50))
    assert chosen.radius == 0


def test_far_from_the_origin_choices_stay_the_same():
    points = torch.from_numpy(clusters(200, 8, 1)).double()
    near, far = k_center(points.float(), 60), k_center((points * 0.25 + 1000).float().double().float(), 60)
    # Rounding to float32 at 1 000 moves the points a little; the first choices are far from ties.
    assert near.indices[:20].tolist() == far.indices[:20].tolist()


def test_far_from_the_origin_near_points_are_still_told_apart():
    """Exact in float32; their squares have no digits left for the differences."""
    points = 4096 + torch.arange(40.0)[:, None] / 1024
    found = k_center(points, 40)
    assert sorted(found.indices.tolist()) == list(range(40))
    assert k_center(points, 2).radius == pytest.approx(19 / 1024, rel=1e-6)


@pytest.mark.parametrize("radius", [0.5, 1.5, 3.0])
def test_stops_at_the_radius(radius):
    points = clusters(300, 5, 2)
    found = k_center(torch.from_numpy(points), 300, radius=radius)
    assert_same_choices(points, 300, radius=radius)
    assert found.radius <= radius
    assert k_center(torch.from_numpy(points), len(found.indices) - 1).radius > radius


@pytest.mark.parametrize("seed", range(3))
def test_initial_distances_take_part(seed):
    points = clusters(200, 5, seed)
    initial = np.linalg.norm(points[:, None] - points[None, :10], axis=2).mean(axis=1)
    assert_same_choices(points, 60, initial=initial)


def test_greedy_covers_within_twice_the_best():
    """Gonzalez: no choice of as many centres has less than half the greedy radius."""
    points = clusters(14, 2, 3)
    greedy = k_center(torch.from_numpy(points), 3).radius
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    best = min(distances[[a, b, c]].min(axis=0).max() for a in range(14) for b in range(a) for c in range(b))
    assert best <= greedy <= 2 * best + 1e-6


def test_progress_reaches_the_end():
    seen = []
    k_center(torch.from_numpy(clusters(200, 5, 0)), 60, progress=lambda done, wanted: seen.append((done, wanted)))
    assert seen[-1] == (60, 60)
    assert seen == sorted(set(seen))


def test_centres_that_are_there_cover_but_are_not_chosen():
    points = clusters(200, 5, 4)
    all_at_once = k_center(torch.from_numpy(points), 60)
    first, rest = (
        all_at_once.indices[:20],
        torch.tensor(sorted(set(range(200)) - set(all_at_once.indices[:20].tolist()))),
    )
    vectors = torch.from_numpy(points)
    then = k_center(vectors[rest], 40, centres=vectors[first])
    assert rest[then.indices].tolist() == all_at_once.indices[20:].tolist()
    assert then.radius == pytest.approx(all_at_once.radius, rel=1e-6)
    covered = k_center(vectors[first], 5, centres=vectors[first])
    assert len(covered.indices) == 0
    assert covered.radius == 0


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"vectors: expected shape \(n, dimension\)"):
        k_center(torch.zeros(0, 3), 1)
    with pytest.raises(ArgumentError, match=r"count: expected at least 1, got 0"):
        k_center(torch.zeros(4, 3), 0)


# Streams: what they say about how far the chosen vectors are from all that came


def points_on_a_line(n, seed):
    """Where the triangle inequality is an equality, a bound that leaves something out is soon broken."""
    drawn = np.random.default_rng(seed).integers(0, 64, (n, 1))
    return torch.from_numpy(drawn.astype(np.float32))


def unchanged(vectors):
    return vectors


def stream_of(vectors, *, capacity, total, wanted):
    stream = CoresetStream(capacity, 1, total=total, wanted=wanted, project=unchanged, like=vectors)
    for part in vectors.split(5):
        stream.add(part)
    return stream


def farthest(vectors, chosen):
    return float(torch.cdist(vectors, chosen).amin(dim=1).max())


@pytest.mark.parametrize("total", [None, 60, 20], ids=["unknown", "announced", "understated"])
def test_the_radius_of_a_stream_covers_all_that_came(total):
    for seed in range(20):
        vectors = points_on_a_line(60, seed)
        stream = stream_of(vectors, capacity=12, total=total, wanted=3)
        for count in (3, 5, 12):
            chosen, radius = stream.finish(count)
            assert farthest(vectors, chosen) <= radius
        for count in (2, 4, 12):
            chosen, radius = stream.reserve(count)
            assert farthest(vectors, chosen) <= radius


def test_a_second_stream_covers_what_the_first_one_did(monkeypatch):
    """From a reserve, with new vectors so near to each other that their own radius is small."""
    monkeypatch.setattr(coreset, "_RESERVE_PART", 6)
    for seed in range(20):
        first = points_on_a_line(40, seed)
        old, radius = stream_of(first, capacity=40, total=40, wanted=3).reserve(4 + seed % 5)
        assert farthest(first, old) <= radius
        more = 1000 + points_on_a_line(12, seed) / 16
        for order in (more, more.flip(0)):
            stream = CoresetStream(60, 1, total=len(old) + 12, wanted=4, project=unchanged, like=first)
            stream.add_coreset(old, radius)
            stream.add(order)
            for count in (3, 6, 10, 60):
                for chosen, said in (stream.finish(count), stream.reserve(count)):
                    assert farthest(torch.cat([first, more]), chosen) <= said


def test_a_stream_that_goes_on_stops_at_the_radius_that_was_asked_for():
    old = torch.tensor([[0.0], [10.0]])
    stream = CoresetStream(60, 1, total=60, wanted=9, project=unchanged, like=old)
    stream.add_coreset(old, 1.5)
    stream.add(torch.arange(20, 40.5, 0.5)[:, None])
    chosen, radius = stream.finish(60, radius=4.0)
    assert 1.5 < radius <= 4.0
    assert len(chosen) < len(stream)


def test_random_starts_count_all_alike_and_follow_the_seed():
    """The first choice is the vector with the largest mean distance to the starts."""
    vectors = torch.arange(90.0)[:, None]
    stream = CoresetStream(90, 1, total=90, wanted=3, project=unchanged, like=vectors)
    stream.add(vectors)
    for seed in range(10):
        drawn = torch.randperm(90, generator=torch.Generator().manual_seed(seed))[:10]
        first = np.linalg.norm(vectors[:, None] - vectors[drawn][None], axis=2).mean(axis=1).argmax()
        assert torch.equal(stream.finish(3, starts=10, seed=seed)[0][0], vectors[first])


def test_a_buffer_full_of_reduced_vectors_adds_up_the_radii():
    old = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    stream = CoresetStream(4, 1, total=4, wanted=2, project=unchanged, like=old)
    stream.add_coreset(old, 1.0)  # they may stand for a vector at 9
    stream.add(torch.tensor([[0.5]]))
    vectors, radius = stream.finish(9)
    assert farthest(torch.tensor([[9.0]]), vectors) == radius == 2
