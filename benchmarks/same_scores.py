"""Are the scores of every method and detector, bit for bit, what they were before a change?

    git stash; python benchmarks/same_scores.py --out before.json; git stash pop
    python benchmarks/same_scores.py --against before.json

Every registered method learns from a few drawn images and scores others; every registered detector scores the outputs
of a small drawn classifier. One SHA-256 a case, of scores, maps and what was learned. Digits depend on machine and
packages, so both files must come from the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import blemish
from blemish.methods import METHODS
from blemish.ood import DETECTORS, Classifier

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from trained import Classifier as TinyClassifier
from trained import varied_pixels, write_reference

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "padim": [{"reduction": "random", "dimensions": 9}, {"storage": "float16"}, {"precision": "bfloat16"}],
    "patchcore": [{"patches": "unfold", "dimensions": 20, "reweight": 3, "ratio": 0.2}, {"storage": "int8"}],
    "spade": [{"k": 3, "storage": "float16"}],
    "knn": [{"normalise": True}],
    "ocsvm": [{"approximation": "fourier"}, {"kernel": "poly"}],
    "svdd": [{"kernel": "linear"}, {"approximation": "nystroem", "components": 8}],
    "gaussian": [{"components": "npca", "variance": 0.2}],
    "cflow": [{"combine": "likelihood", "permutation": "hard"}],
    "students": [{"fast": True}, {"patches": (17, 33)}],
    "gaussian_finetune": [{"covariance": "diagonal", "trained": ("c",)}],
    "panda": [{"stop": "ses", "snapshot_every": 1}, {"stop": "ewc"}, {"choose": "criterion"}],
    "mean_shifted": [{"angular": True}],
    "deep_svdd": [{"boundary": "soft", "warm_up": 1}, {"network": "backbone"}, {"pretrain": 1}],
    "joint": [{"head": "pretrained"}],
    "ensemble": [{"measure": "mkl"}],
    "gen": [{"gamma": 0.5, "top": 2}],
    "last_layer": [{"temperature": 3.0, "bias": False}],
    "ex_grad": [{"norm": "l2"}],
    "ash": [{"variant": "b"}, {"variant": "p"}],
    "gradient": [{"temperature": 5.0, "eps": 0.002}],
}


def network(seed: int) -> nn.Module:
    """The tests' classifier."""
    made = TinyClassifier(seed)
    made.head.bias.data.add_(1.0)  # one of the detectors wants logits above 0
    return made.eval()


def batch(count: int, seed: int, side: int = 32) -> blemish.ImageBatch:
    """Noise, in another light for each image."""
    pixels = (varied_pixels(count, seed, (side, side)) * 255).round() / 255
    return blemish.ImageBatch(pixels, tuple(f"{seed} {i}" for i in range(count)), ((side, side),) * count)


def quick(folder: Path) -> dict[str, dict[str, Any]]:
    """Parameters with which a method that trains takes a moment."""
    small = {"backbone": blemish.custom_backbone(network(0), taps=("a", "b", "c"), trace_size=32), "epochs": 2}
    return {
        "cflow": {"backbone": "filters", "blocks": 2, "condition": 4, "positions": 64, "steps": 20},
        "students": {"steps": 4, "grid": 6},
        "gaussian_finetune": small,
        "panda": small | {"batch": 8},
        "mean_shifted": small,
        "deep_svdd": small | {"side": 8},
        "joint": small | {"batch": 8, "reference": write_reference(folder / "reference.npz")},
    }


def digest(*tensors: torch.Tensor | None) -> str:
    """Of the bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(np.ascontiguousarray(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).data)
    return found.hexdigest()[:16]


def of_methods() -> dict[str, str]:
    """By method and parameters."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        small = quick(Path(name))
        for method, kind in METHODS.items():
            for more in [{}, *VARIANTS.get(method, [])]:
                fitted = kind(**{"seed": 3, **small.get(method, {"backbone": "filters"}), **more})
                fitted.fit([batch(7, 1), batch(7, 2), batch(4, 3)])
                scores = fitted.score(batch(5, 4))
                learned = [tensor.reshape(-1) for _, tensor in sorted(fitted.state().items())]
                found[f"{method} {more or ''}".strip()] = digest(scores.images, scores.maps, *learned)
    return found


def of_detectors() -> dict[str, str]:
    """By detector and parameters."""
    classifier = Classifier(
        network(1), preprocess=blemish.Preprocess(32), members=[Classifier(network(2), blemish.Preprocess(32))]
    )
    learned, test = (classifier.outputs(batch(count, seed).pixels) for count, seed in ((64, 5), (9, 6)))
    found = {}
    for name, kind in DETECTORS.items():
        for more in [{}, *VARIANTS.get(name if name != "knn" else "", []), *([{"k": 3}] if name == "knn" else [])]:
            detector = kind(**more)
            if detector.learns:
                detector.fit(learned)
            found[f"ood {name} {more or ''}".strip()] = digest(torch.from_numpy(detector.score(test)))
    return found


def of_detector() -> dict[str, str]:
    """The front door: split, threshold, maps back on the original pixels."""
    random = np.random.default_rng(7)
    images = random.integers(0, 256, (40, 60, 80, 3), dtype=np.uint8)
    found = {}
    for preset in ("default", "paper"):
        detector = blemish.Detector(method=blemish.PaDiM(), preprocess=preset, false_alarm_rate=0.2)
        detector.fit(images)
        decisions = list(detector.predict(images[:3] // 2))
        numbers = [torch.tensor([d.score, d.p_value, d.threshold], dtype=torch.float64) for d in decisions]
        found[f"detector {preset}"] = digest(*numbers, *(torch.from_numpy(d.map) for d in decisions))
    return found


def main() -> None:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = of_methods() | of_detectors() | of_detector()
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        other = [name for name in before | found if before.get(name) != found.get(name)]
        print(f"{len(found) - len(other)} of {len(found)} cases bit-identical")
        for name in other:
            print(f"  differs: {name}")
        sys.exit(bool(other))


if __name__ == "__main__":
    main()
