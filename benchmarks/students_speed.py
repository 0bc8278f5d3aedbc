"""Scoring speed of Uninformed Students with the built-in teachers: three scales x three students, and the fast form.

    python benchmarks/students_speed.py [--side 256] [--rounds 5] [--threads 1]

Milliseconds an image, the median of rounds in which all forms take turns. The students are hardly trained, which
changes no time.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import torch

from blemish import Detector, Preprocess
from blemish.methods.students import Students
from blemish.types import ImageBatch

FORMS = {
    "17 + 33 + 65, 3 students, dense": {"patches": (17, 33, 65)},
    "17 + 33 + 65, 3 students, not dense": {"patches": (17, 33, 65), "dense": False},
    "33 + 65, 3 students, dense": {"patches": (33, 65)},
    "33 + 65, 3 students, not dense": {"patches": (33, 65), "dense": False},
    "33 + 65, fast": {"patches": (33, 65), "fast": True},
    "33, 3 students, dense": {"patches": (33,)},
    "33, 3 students, not dense": {"patches": (33,), "dense": False},
    "33, fast": {"patches": (33,), "fast": True},
    "33, 3 students, dense, mahalanobis": {"patches": (33,), "distance": "mahalanobis"},
    "33, 3 students, not dense, mahalanobis": {"patches": (33,), "dense": False, "distance": "mahalanobis"},
    "33, fast, mahalanobis": {"patches": (33,), "fast": True, "distance": "mahalanobis"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.side, options.side)
    images = (torch.rand(4, *size, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    batch = ImageBatch(torch.from_numpy(images[:1]).permute(0, 3, 1, 2) / 255, ("",), (size,))
    methods = {}
    for name, parameters in FORMS.items():
        methods[name] = Students(**parameters, steps=1, grid=2)
        Detector(method=methods[name], preprocess=Preprocess(options.side), calibration="none").fit(images)
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(options.rounds):
        for name, method in methods.items():
            start = perf_counter()
            method.score(batch)
            seconds[name].append(perf_counter() - start)
    for name, times in seconds.items():
        print(f"{name:36} {1e3 * median(times):7.1f} ms an image")


if __name__ == "__main__":
    main()
