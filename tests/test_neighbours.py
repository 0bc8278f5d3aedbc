"""Exact search against the plain loop, ties and storage included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.errors import ArgumentError
from blemish.ops import neighbours
from blemish.ops.neighbours import Exact, nearest_squared
from reference import neighbours as reference


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_BANK", 11)
    monkeypatch.setattr(neighbours, "_PRODUCTS", 60)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_search_is_that_of_the_plain_loop(k):
    bank, queries = normal(40, 6), normal(23, 6, seed=1)
    squared, indices = Exact().build(torch.from_numpy(bank)).search(torch.from_numpy(queries), k)
    expected, order = reference.search(bank.astype(np.float64), queries.astype(np.float64), k)
    np.testing.assert_allclose(squared.numpy(), expected, rtol=1e-5)
    assert np.array_equal(indices.numpy(), order)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(1, 3), side=st.integers(1, 4), k=st.integers(2, 9), seed=st.integers(0, 9))
def test_ties_go_to_the_lowest_index(*, n, d, side, k, seed):
    random = np.random.default_rng(seed)
    bank = random.integers(0, side, (n, d)).astype(np.float32)
    queries = random.integers(0, side, (5, d)).astype(np.float32)
    k = min(k, n)
    squared, indices = Exact().build(torch.from_numpy(bank)).search(torch.from_numpy(queries), k)
    expected, order = reference.search(bank, queries, k)
    np.testing.assert_allclose(squared.numpy(), expected, atol=1e-4)
    assert np.array_equal(indices.numpy(), order)


def test_near_neighbours_far_from_the_origin_lose_no_digits():
    bank = normal(50, 6) + 300
    queries = bank[:10] + normal(10, 6, seed=1) * 1e-2
    squared, _ = Exact().build(torch.from_numpy(bank)).search(torch.from_numpy(queries), 1)
    expected, _ = reference.search(bank.astype(np.float64), queries.astype(np.float64), 1)
    np.testing.assert_allclose(squared.numpy(), expected, rtol=3e-2)  # float32 at 300 has a step of 3e-5


def test_distance_of_a_stored_vector_is_zero():
    bank = torch.from_numpy(normal(30, 8))
    squared, indices = Exact().build(bank).search(bank, 1)
    assert torch.equal(squared, torch.zeros(30, 1))
    assert torch.equal(indices[:, 0], torch.arange(30))


@pytest.mark.parametrize(
    ("storage", "share", "error"), [("float32", 1, 1e-6), ("float16", 0.5, 1e-3), ("int8", 0.25, 2e-2)]
)
def test_storage(storage, share, error):
    bank, queries = torch.from_numpy(normal(200, 16)), torch.from_numpy(normal(40, 16, seed=1))
    index = Exact(storage).build(bank)
    exact, _ = Exact().build(bank).search(queries, 3)
    squared, _ = index.search(queries, 3)
    assert float(((squared.sqrt() - exact.sqrt()).abs() / exact.sqrt()).max()) <= error
    assert float((index.vectors() - bank).abs().max()) <= error * 4
    assert torch.equal(index.vectors(torch.tensor([7, 3])), index.vectors()[[7, 3]])
    assert index.state()["bank"].nbytes == bank.nbytes * share
    restored = Exact(storage).restore(index.state())
    assert all(torch.equal(a, b) for a, b in zip(restored.search(queries, 3), index.search(queries, 3), strict=True))


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_dimension_of_one_rounding_step_stays_finite(storage):
    step = np.nextafter(np.float32(1), np.float32(2))
    bank = torch.tensor([[1.0, 0.0], [float(step), 1.0]])
    assert torch.isfinite(Exact(storage).build(bank).vectors()).all()


def test_constant_dimension_survives_int8():
    bank = torch.from_numpy(normal(20, 4))
    bank[:, 2] = 5.0
    assert torch.equal(Exact("int8").build(bank).vectors()[:, 2], bank[:, 2])


def test_one_query_gives_what_many_give():
    bank, queries = torch.from_numpy(normal(300, 32)), torch.from_numpy(normal(30, 32, seed=1))
    index = Exact().build(bank)
    together, _ = index.search(queries, 1)
    alone = torch.cat([index.search(queries[i : i + 1], 1)[0] for i in range(30)])
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 4, 20])
def test_nearest_squared_are_the_smallest_distances(k):
    bank, queries = normal(40, 6), normal(23, 6, seed=1)
    found = nearest_squared(torch.from_numpy(queries), torch.from_numpy(bank).split(15), k)
    expected, _ = reference.search(bank.astype(np.float64), queries.astype(np.float64), k)
    np.testing.assert_allclose(found.sort(dim=1).values.numpy(), expected, rtol=1e-4)
    assert nearest_squared(torch.zeros(2, 3), [torch.zeros(1, 3)], 2).tolist() == [[0, np.inf]] * 2
    assert float(nearest_squared(torch.from_numpy(bank), [torch.from_numpy(bank)]).min()) >= 0


def test_bad_arguments():
    index = Exact().build(torch.zeros(5, 3))
    with pytest.raises(ArgumentError, match=r"queries: expected shape \(n, 3\), got an array of shape \(2, 4\)"):
        index.search(torch.zeros(2, 4), 1)
    with pytest.raises(ArgumentError, match=r"k: expected 1 to 5, the vectors in the bank, got 6"):
        index.search(torch.zeros(2, 3), 6)
    with pytest.raises(ArgumentError, match=r"vectors: expected shape"):
        Exact().build(torch.zeros(0, 3))
    with pytest.raises(ArgumentError, match=r"storage: expected float32, float16 or int8, got float8"):
        Exact("float8").build(torch.zeros(5, 3))
