from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish import Detector
from blemish.edges.faiss import Faiss, index_from_name
from blemish.errors import ArgumentError, ModelFileError
from blemish.images.preprocess import Preprocess
from blemish.methods import KNN, PatchCore
from blemish.ops.neighbours import Exact, midpoints
from contract.laws import Images, batch, normal_pixels
from reference import neighbours as neighbours_reference
from small import BACKBONE, small_pixels


def vectors(n, seed):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("description", "recall", "shrinks"),
    [("flat", 1.0, False), ("ivf16", 0.2, False), ("hnsw16", 0.9, False), ("pq8", 0.2, True), ("ivf8,pq8", 0.1, True)],
)
def test_search_against_exact(description, recall, shrinks):
    bank, queries = vectors(1000, 0), vectors(50, 1)
    index = Faiss(description).build(bank)
    exact, order = Exact().build(bank).search(queries, 3)
    squared, indices = index.search(queries, 3)
    assert float((indices[:, 0] == order[:, 0]).float().mean()) >= recall
    assert (squared.diff(dim=1) >= 0).all()
    if recall == 1:
        torch.testing.assert_close(squared, exact)
    assert len(index) == 1000
    assert (index.state()["faiss"].nbytes < bank.nbytes) == shrinks
    assert torch.equal(index.vectors(torch.tensor([5, 3])), index.vectors()[[5, 3]])
    if not shrinks:
        assert torch.equal(index.vectors(), bank)
    restored = Faiss(description).restore(index.state())
    assert all(torch.equal(a, b) for a, b in zip(restored.search(queries, 3), (squared, indices), strict=True))


def test_the_same_vectors_give_the_same_index():
    for description in ("ivf16", "hnsw16", "pq8"):
        first, second = (Faiss(description).build(vectors(1000, 0)).state()["faiss"] for _ in range(2))
        assert torch.equal(first, second), description


def test_cells_with_too_few_vectors_are_made_up_for():
    index = Faiss("ivf16").build(vectors(700, 0))
    squared, indices = index.search(vectors(5, 1), 650)
    assert torch.isfinite(squared).all()
    assert (indices >= 0).all()


@pytest.mark.parametrize("method", [PatchCore, KNN])
def test_a_method_with_an_index_saves_loads_and_grows(method, tmp_path):
    images = list(normal_pixels(24, 0).permute(0, 2, 3, 1).numpy())
    options = {"ratio": 0.5} if method is PatchCore else {"normalise": True}
    small = {"preprocess": Preprocess(64), "calibration": "none"}
    detector = Detector(method=method(backbone="filters", index=Faiss("flat"), **options), **small)
    exact = Detector(method=method(backbone="filters", **options), **small).fit(images[:20])
    detector.fit(images[:20]).save(tmp_path / "m.blemish")
    score = [decision.score for decision in detector.predict(images[20:])]
    assert score == pytest.approx([decision.score for decision in exact.predict(images[20:])], rel=1e-4)
    with pytest.raises(ModelFileError, match=r"fitted with the index faiss:flat\. Pass what makes it"):
        Detector.load(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish", make_index=index_from_name)
    assert [decision.score for decision in loaded.predict(images[20:])] == score
    size = len(loaded.method.bank_)
    loaded.update(images[20:])
    assert len(loaded.method.bank_) == size * 24 // 20


def test_recall_is_reported_at_fit():
    train = Images(small_pixels(30, 1))
    found = PatchCore(backbone=BACKBONE, ratio=0.5, index=Faiss("hnsw4")).fit(train)
    assert 0.5 < found.recall_ <= 1
    coarse = PatchCore(backbone=BACKBONE, ratio=0.5, index=Faiss("pq2")).fit(train)
    assert coarse.recall_ < 0.9
    assert coarse.storage_error_ > 0.01
    assert coarse.score(batch(small_pixels(2, 2))).maps.shape == (2, 24, 24)


def test_recall_of_knn_is_reported_at_fit_and_after_growing():
    train = small_pixels(40, 1)
    assert KNN(backbone=BACKBONE).fit(Images(train)).recall_ == 1.0
    assert KNN(backbone=BACKBONE, index=Faiss("flat")).fit(Images(train)).recall_ >= 0.9  # near-ties, by its version
    coarse = KNN(backbone=BACKBONE, index=Faiss("ivf16")).fit(Images(train[:30]))
    vectors = coarse.bank_.vectors()
    queries = midpoints(vectors, 2048, seed=0)
    found = coarse.bank_.search(queries, 2)[1]
    _, expected = neighbours_reference.search(vectors.numpy(), queries.numpy(), 2)
    share = np.mean([len(set(a) & set(b)) / 2 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    assert coarse.recall_ == pytest.approx(share)
    assert 0.1 < coarse.recall_ < 0.95
    before = coarse.recall_
    restored = KNN(backbone=BACKBONE, index=Faiss("ivf16"))
    restored.restore(coarse.state())
    assert restored.recall_ == before
    assert coarse.partial_fit(Images(train[30:])).recall_ != before


@pytest.mark.parametrize(("name", "message"), [
    ("annoy:10", "index: expected exact or faiss:DESCRIPTION, got annoy:10"),
    ("faiss:ivf", "index: expected faiss:flat, ivfN"),
    ("faiss:Flat;rm", "index: expected faiss:flat, ivfN"),
])  # fmt: skip
def test_bad_names(name, message):
    with pytest.raises(ArgumentError, match=message):
        index_from_name(name)


def test_a_description_that_does_not_suit_the_bank():
    with pytest.raises(ArgumentError, match=r"index: expected a description that suits 9 vectors, got faiss:ivf64"):
        Faiss("ivf64").build(vectors(9, 0))
    with pytest.raises(ArgumentError, match=r"index: expected a description that suits 16 dimensions, got faiss:pq5"):
        Faiss("pq5").build(vectors(300, 0))
    with pytest.raises(ArgumentError, match=r"index: expected a description that suits 7 vectors, got faiss:ivf64"):
        PatchCore(backbone=BACKBONE, count=7, index=Faiss("ivf64")).fit(Images(small_pixels(6, 1)))


def test_a_stored_exact_index_needs_no_maker(tmp_path):
    images = list(normal_pixels(6, 0).permute(0, 2, 3, 1).numpy())
    detector = Detector(method=KNN(backbone="filters", index=Exact("int8")), calibration="none").fit(images)
    detector.save(tmp_path / "m.blemish")
    assert Detector.load(tmp_path / "m.blemish").method.index == Exact("int8")


def test_a_name_is_not_an_index():
    with pytest.raises(ArgumentError, match=r"index: expected an IndexFactory or None, got faiss:flat"):
        KNN(backbone=BACKBONE, index="faiss:flat").fit(Images(small_pixels(6, 1)))
    assert isinstance(index_from_name("exact"), Exact)


@pytest.mark.parametrize("description", ["ivf0", "hnsw0", "pq0", "ivf0,pq4", "ivf", "ivf-1"])
def test_a_description_of_nothing_is_refused_at_once(description):
    with pytest.raises(ArgumentError, match=rf"index: expected faiss:flat, ivfN, .* got {description}"):
        Faiss(description)
