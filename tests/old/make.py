"""Write small model files and the scores they gave, with the version that is installed: `python tests/old/make.py`.

Run once, with each version that is published, in a checkout of it; the files stay in the repository.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import blemish
from blemish import Detector, Preprocess
from blemish.methods.registry import find_method

METHODS = {
    "padim": {"backbone": "filters", "dimensions": 4},
    "patchcore": {"backbone": "filters", "ratio": 0.05},
    "knn": {"backbone": "filters"},
    "gaussian": {"backbone": "filters"},
}
FOLDER = Path(__file__).parent


def images(n: int, seed: int) -> np.ndarray:
    """`(n, 32, 32, 3)` bytes: stripes in some light, with noise; those of seed 1 are no normal ones."""
    random = np.random.default_rng(seed)
    stripes = 128 + 60 * np.sin(np.arange(32) / (2 + seed))[None, :, None]
    light, noise = random.uniform(0.8, 1.2, (n, 1, 1, 1)), random.normal(0, 6, (n, 32, 32, 3))
    return (stripes * light + noise).clip(0, 255).astype(np.uint8)


def judged(detector: Detector) -> list[dict[str, float]]:
    """Score and p-value of some normal images, and of others."""
    found = detector.predict(list(np.concatenate([images(2, 0), images(2, 1)])))
    return [{"score": one.score, "p_value": one.p_value} for one in found]


def main() -> None:
    expected = {}
    for name, parameters in METHODS.items():
        method = find_method(name)(**parameters)
        detector = Detector(method=method, preprocess=Preprocess(32), false_alarm_rate=0.2)
        detector.fit(list(images(25, 0)))
        path = FOLDER / f"{blemish.__version__}-{name}.blemish"
        detector.save(path)
        expected[name] = {"threshold": detector.calibration_.threshold, "images": judged(Detector.load(path))}
    (FOLDER / f"{blemish.__version__}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
