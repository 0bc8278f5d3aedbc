"""Published figures on real images with real weights; skipped where they are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blemish import Detector, PaDiM, evaluate, open_dataset

DATA = Path(os.environ.get("BLEMISH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (set BLEMISH_TEST_DATA)"),
]


def test_padim_on_screw_reproduces_the_published_figures():
    """Published: image AUROC 0.745 (re-implementation), pixel AUROC 0.972 to 0.974, at seed 1024."""
    dataset = open_dataset(DATA / "mvtec_ad" / "screw")
    method = PaDiM(weights=DATA / "weights" / "resnet18.pth", seed=1024, **PaDiM.paper)
    figures = evaluate(
        Detector(method=method, preprocess="paper", calibration="none").fit(dataset.train_images()), dataset
    ).figures
    assert 0.72 <= figures.image_auroc <= 0.80
    assert 0.970 <= figures.pixel_auroc <= 0.977
    assert (figures.n_normal, figures.n_anomalous) == (41, 119)
