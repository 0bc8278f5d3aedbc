"""Features that are read once give exactly the scores of features that are read each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish import METHODS, Batches, Detector, PaDiM, Preprocess
from blemish.errors import ArgumentError, ImageError, NotEnoughMemoryError
from blemish.features.backbones import find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.memory import FeatureMemory
from blemish.images.source import from_arrays
from blemish.methods import Method
from blemish.types import ImageBatch, Scores
from contract.laws import anomalous_pixels, normal_pixels
from small import BACKBONE
from test_detector import arrays
from trained import quick, reads_features

SIDE = Preprocess(64)
NORMAL = from_arrays(arrays(normal_pixels(21, 1)), names=[f"normal {i}" for i in range(21)])
TEST = from_arrays(
    arrays(torch.cat([normal_pixels(3, 3), anomalous_pixels(2, 4)])), names=[f"test {i}" for i in "abcde"]
)


def remember(backbone, taps, *, preprocess=SIDE, **settings):
    row = find_backbone(backbone)
    extractor = build_extractor(row, taps=taps)
    memory = FeatureMemory(backbone=row.name, preprocess=preprocess, images=len(NORMAL) + len(TEST), **settings)
    for source in (NORMAL, TEST):
        for batch in Batches(source, preprocess):
            memory.add(batch, dict(zip(taps, extractor(batch.pixels).maps, strict=True)))
    return memory


@pytest.fixture(scope="module")
def memory():
    return remember("filters", ("level3", "level1", "level2"))


def detector(name, **settings):
    return Detector(method=quick(name), preprocess=SIDE, false_alarm_rate=0.25, **settings)


def scores(detector):
    return [(batch.names, batch.sizes, scores) for batch, scores in detector.fit(NORMAL).score(TEST)]


@pytest.mark.parametrize("name", [*filter(reads_features, METHODS)])
def test_scores_are_bit_identical_and_nothing_is_decoded_or_extracted(name, memory, monkeypatch):
    plain = detector(name)
    expected = scores(plain)
    monkeypatch.setattr(Extractor, "__call__", None)
    monkeypatch.setattr(Preprocess, "pixels", None)
    shared = detector(name, features=memory)
    for (names, sizes, one), (names_, sizes_, other) in zip(scores(shared), expected, strict=True):
        assert (names, sizes) == (names_, sizes_)
        assert torch.equal(one.images, other.images)
        assert (one.maps is None) == (other.maps is None)
        assert one.maps is None or torch.equal(one.maps, other.maps)
    np.testing.assert_array_equal(shared.calibration_.scores, plain.calibration_.scores)
    assert shared.manifest() == plain.manifest()


def test_a_model_of_shared_features_is_a_model(memory, tmp_path):
    shared = detector("padim", features=memory).fit(NORMAL)
    shared.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish")
    for a, b in zip(loaded.predict(TEST), detector("padim").fit(NORMAL).predict(TEST), strict=True):
        assert (a.score, a.threshold) == (b.score, b.threshold)


def test_an_update_reads_them_too(memory, monkeypatch):
    plain, shared = (detector("padim", calibration="none", features=f) for f in (None, memory))
    plain.fit(NORMAL.subset(range(10))).update(NORMAL.subset(range(10, 21)))
    expected = [s.images for _, s in plain.score(TEST)]
    monkeypatch.setattr(Extractor, "__call__", None)
    shared.fit(NORMAL.subset(range(10))).update(NORMAL.subset(range(10, 21)))
    assert all(torch.equal(s.images, e) for (_, s), e in zip(shared.score(TEST), expected, strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_come_back_with_their_layout_from_memory_and_from_disk(channels_last, tmp_path):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = {name: torch.rand(5, c, 4, 6).contiguous(memory_format=layout) for name, c in (("a", 3), ("b", 7))}
    names = tuple("vwxyz")
    batch = ImageBatch(torch.zeros(5, 3, 16, 16), names, tuple((i, i) for i in range(5)))
    for budget, on_disk in ((None, False), (4 * 5 * 10 * 24, False), (4 * 5 * 10 * 24 - 1, True)):
        memory = FeatureMemory(backbone="small", preprocess=Preprocess(16), images=5, budget=budget, folder=tmp_path)
        memory.add(batch, maps)
        assert memory.on_disk == on_disk
        assert memory.bytes == 4 * 5 * 10 * 24
        found = memory.batch(("y", "v"))
        assert (found.names, found.sizes) == (("y", "v"), ((3, 3), (0, 0)))
        assert found.pixels.shape == (2, 3, 16, 16)
        assert found.pixels.isnan().all()
        for name, kept in maps.items():
            assert torch.equal(found.features[name], kept[[3, 0]])
            assert found.features[name].is_contiguous(memory_format=layout)
    assert list(tmp_path.iterdir()) == []  # mapped, but already without a name: nothing is left behind


def test_a_disk_that_is_too_small_is_found_before_it_is_full(tmp_path):
    memory = FeatureMemory(backbone="small", preprocess=SIDE, images=10**9, budget=0, folder=tmp_path)
    with pytest.raises(NotEnoughMemoryError, match=r"features of 1000000000 images: .* set TMPDIR"):
        memory.add(ImageBatch(torch.zeros(1, 3, 64, 64), ("a",), ((1, 1),)), {"a": torch.zeros(1, 100, 50, 50)})
    assert list(tmp_path.iterdir()) == []


def test_each_image_once_and_no_more_than_announced():
    batch = ImageBatch(torch.zeros(2, 3, 64, 64), ("a", "b"), ((1, 1),) * 2)
    memory = FeatureMemory(backbone="small", preprocess=SIDE, images=3)
    memory.add(batch, {"a": torch.zeros(2, 4, 4, 4)})
    for names in (("b", "c"), ("c", "d")):
        with pytest.raises(ArgumentError, match="images: expected 3 different ones"):
            memory.add(ImageBatch(batch.pixels, names, batch.sizes), {"a": torch.zeros(2, 4, 4, 4)})
    assert len(memory) == 2


class Brightness(Method):
    """A method that looks at pixels."""

    name = "brightness"

    def fit(self, images):
        return self

    def score(self, batch):
        return Scores(batch.pixels.mean(dim=(1, 2, 3)), None)

    def state(self):
        return {}

    def restore(self, state):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 32}, "tile: expected None with the features of whole images, got 32"),
        ({"preprocess": Preprocess(48)}, r"preprocess: expected Preprocess\(resize=64.*, got Preprocess\(resize=48"),
        ({"method": PaDiM(backbone=BACKBONE)}, "features: expected those of custom:custom in float32, got filters in"),
        (
            {"method": PaDiM(backbone="filters", precision="bfloat16")},
            "expected those of filters in bfloat16, got",
        ),
        ({"method": Brightness()}, "method: expected one that reads features, got brightness"),
        ({"method": PaDiM(backbone="filters", taps=("level1", "bank"))}, "taps: expected module names of filters"),
    ],
)
def test_features_of_something_else_are_refused(memory, changes, message):
    settings = {"method": PaDiM(backbone="filters"), "preprocess": SIDE, "calibration": "none", **changes}
    with pytest.raises(ArgumentError, match=message):
        Detector(**settings, features=memory).fit(NORMAL)


def test_a_missing_layer_is_named():
    memory = remember("filters", ("level1",))
    with pytest.raises(ArgumentError, match="features: expected maps of level1, level2, level3, got level1"):
        detector("padim", features=memory).fit(NORMAL)


def test_unknown_images_are_refused_and_bad_ones_left_out(memory):
    with pytest.raises(ArgumentError, match="images: expected images that `features` knows, got image 0"):
        list(Batches(from_arrays(arrays(normal_pixels(1, 9))), SIDE, features=memory))

    def load(index):
        raise ImageError("bad.png: broken")

    mixed = type(NORMAL)(("normal 3", "bad.png", "test a"), load)
    batches = Batches(mixed, SIDE, features=memory, on_error="skip")
    assert [batch.names for batch in batches] == [("normal 3", "test a")]
    assert batches.skipped == [("bad.png", "bad.png: broken")]
    with pytest.raises(ImageError, match="broken"):
        list(Batches(mixed, SIDE, features=memory))
