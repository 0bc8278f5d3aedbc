"""Published figures on real images with real weights; skipped where they are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blemish import Detector, GaussianAD, PaDiM, PatchCore, Preprocess, evaluate, open_dataset

DATA = Path(os.environ.get("BLEMISH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESNET = {"backbone": "resnet18", "weights": DATA / "weights" / "resnet18.pth"}
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set BLEMISH_TEST_DATA)"),
]


@pytest.mark.heavy
def test_padim_on_screw_reproduces_the_published_figures():
    """Published: image AUROC 0.745 (re-implementation), pixel AUROC 0.972 to 0.974, at seed 1024."""
    dataset = open_dataset(DATA / "mvtec_ad" / "screw")
    method = PaDiM(**RESNET, seed=1024, **PaDiM.paper)
    figures = evaluate(
        Detector(method=method, preprocess="paper", calibration="none").fit(dataset.train_images()), dataset
    ).figures
    assert 0.72 <= figures.image_auroc <= 0.80
    assert 0.970 <= figures.pixel_auroc <= 0.977
    assert (figures.n_normal, figures.n_anomalous) == (41, 119)


@pytest.mark.heavy
def test_padim_on_magnetic_tiles_is_no_worse_than_measured():
    """A peer on the same weights and images: 0.925 / 0.748 with one draw of channels, 0.910 / 0.729 with another."""
    dataset = open_dataset(DATA / "mtd")
    detector = Detector(method=PaDiM(**RESNET), preprocess=Preprocess(256)).fit(dataset.train_images())
    figures = evaluate(detector, dataset).figures
    assert figures.image_auroc >= 0.92
    assert figures.pixel_auroc >= 0.74
    assert figures.false_alarms <= 0.10


@pytest.mark.heavy
def test_patchcore_grown_on_screw_is_no_worse_than_measured():
    """Half a per cent, grown: 0.904 / 0.981 / 0.909. Refitted: image AUROC 0.930."""
    dataset = open_dataset(DATA / "mvtec_ad" / "screw")
    images = dataset.train_images()
    method = PatchCore(**RESNET, ratio=0.005)
    detector = Detector(method=method, calibration="none").fit(images.subset(range(240)))
    radius = method.radius_
    detector.update(images.subset(range(240, 320)))
    assert method.seen_ == 320 * 1024
    assert len(method.bank_) == 1638
    assert method.radius_ >= radius
    figures = evaluate(detector, dataset, pixels="network").figures
    assert figures.image_auroc >= 0.88
    assert figures.pixel_auroc >= 0.975
    assert figures.au_pro_30 >= 0.89


@pytest.mark.heavy
def test_gaussian_on_magnetic_tiles_beats_the_published_nearest_neighbour():
    """Published for 1-NN on other features: 0.800."""
    dataset = open_dataset(DATA / "mtd")
    method = GaussianAD(**RESNET, taps=("layer1", "layer2", "layer3"))
    detector = Detector(method=method, calibration="none").fit(dataset.train_images().subset(range(0, 761, 3)))
    assert evaluate(detector, dataset).figures.image_auroc >= 0.85
