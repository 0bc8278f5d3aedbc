"""Time and memory of every backbone of the table on a CPU, with PaDiM and SPADE, one image and eight at a time.

    python benchmarks/backbone_costs.py --out docs/study/costs.csv            # all rows; goes on where it was stopped
    python benchmarks/backbone_costs.py --out /tmp/costs.csv --only resnet18 mobilenet_v2

Neither time nor memory depends on the weights, so they are random, and the features that the methods learn from are
those of two images with noise. Each row has a process of its own. Times are the smallest of some runs, and in each
process resnet18's forward pass is run between those of the row: `forward_1_ratio` is what compares machines.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from _measure import run_json
from torch import Tensor

from blemish.features.backbones import BACKBONES, Backbone, find_backbone
from blemish.features.extract import Extractor, build_extractor
from blemish.features.weights import find_weights
from blemish.memory import forget_peak, peak_since
from blemish.methods import METHODS, FeatureMethod
from blemish.types import ImageBatch

SIDE, IMAGES = 256, 60
SECONDS = 2.0
"""How long one figure may be measured; at least two runs, at most ten."""


@dataclass(frozen=True)
class MadeUp:
    """Batches whose features are there already: those of two images, with noise."""

    maps: dict[str, Tensor]
    images: int

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[ImageBatch]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, self.images, 4):
            features = {}
            for tap, maps in self.maps.items():
                noise = torch.randn(4, *maps.shape[1:], generator=generator)
                features[tap] = (
                    maps[:1].lerp(maps[1:], torch.rand(4, 1, 1, 1, generator=generator)) + noise * maps.std()
                )
            yield _batch(4, start, features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file; rows that it has already are kept")
    parser.add_argument("--only", nargs="+", help="names of rows; all of the table if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        import json

        torch.set_num_threads(options.threads)
        torch.set_flush_denormal(
            True
        )  # some random networks fade to numbers that a CPU is slow with; trained ones do not
        print(json.dumps(measure(options.row)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["backbone"] for row in _read(options.out)}
    for name in options.only or sorted(BACKBONES):
        if name in done:
            continue
        command = [
            sys.executable,
            __file__,
            "--out",
            str(options.out),
            "--threads",
            str(options.threads),
            "--row",
            name,
        ]
        row = run_json(command)
        with options.out.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print(f"{name}: {row['forward_1_ms']} ms, {row['forward_1_ratio']} x resnet18", flush=True)


def measure(name: str) -> dict[str, Any]:
    """All figures of one row of the table."""
    row = find_backbone(name)
    extractor, reference = _extractor(row), _extractor(find_backbone("resnet18"))
    one, eight = torch.rand(1, 3, SIDE, SIDE), torch.rand(8, 3, SIDE, SIDE)
    alone, compared = _fastest(partial(extractor, one), partial(reference, one))
    together, compared_together = _fastest(partial(extractor, eight), partial(reference, eight))
    maps = dict(zip(extractor.taps, extractor(eight[:2]).maps, strict=True))
    figures = {
        "backbone": name,
        "threads": torch.get_num_threads(),
        "forward_1_ms": _ms(alone),
        "forward_8_ms": _ms(together / 8),
        "forward_1_ratio": round(alone / compared, 3),
        "forward_8_ratio": round(together / compared_together, 3),
    }
    del extractor, reference
    for method in ("padim", "spade"):
        figures |= {
            f"{method}_{key}": value for key, value in _method(method, row, maps, figures["forward_8_ms"]).items()
        }
    return figures


def _method(name: str, row: Backbone, maps: dict[str, Tensor], forward_ms: float) -> dict[str, Any]:
    """Learning and scoring, on features that are there; and the memory of learning, and of both kinds of scoring."""
    method = METHODS[name](backbone=row.name, weights=_weights(row), seed=0)  # type: ignore[call-arg]
    assert isinstance(method, FeatureMethod)
    taps = method.tapped()
    extra = [tap for tap in taps if tap not in maps]
    if extra:  # the layer by which SPADE finds similar images
        with torch.inference_mode():
            maps = maps | dict(zip(taps, _extractor(row, taps)(torch.rand(2, 3, SIDE, SIDE)).maps, strict=True))
    images = MadeUp({tap: maps[tap] for tap in taps}, IMAGES)
    forget_peak()
    start = perf_counter()
    method.fit(images)
    figures: dict[str, Any] = {"learn_s": round(perf_counter() - start, 2), "fit_peak_mb": _mb(peak_since())}
    state = method.state()
    figures["model_mb"] = _mb(sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
    first = next(iter(images))
    for count in (1, 8):
        if count > 1 and figures["score_1_ms"] > 1e3 * SECONDS * 3:
            figures |= {f"score_{count}_ms": None, f"score_{count}_peak_mb": None}  # it would take minutes
            continue
        features = {tap: torch.cat([maps, maps])[:count] for tap, maps in (first.features or {}).items()}
        forget_peak()
        start = perf_counter()
        method.score(_batch(count, 0, None))
        whole, peak = perf_counter() - start, peak_since()
        seconds = whole - forward_ms * count / 1e3
        if whole < 2 * SECONDS:  # a second look, without the forward pass
            [seconds] = _fastest(partial(method.score, _batch(count, 0, features)))
        figures |= {f"score_{count}_ms": _ms(seconds / count), f"score_{count}_peak_mb": _mb(peak)}
    return figures


def _batch(count: int, start: int, features: dict[str, Tensor] | None) -> ImageBatch:
    names = tuple(str(start + i) for i in range(count))
    return ImageBatch(torch.rand(count, 3, SIDE, SIDE), names, ((SIDE, SIDE),) * count, features)


def _extractor(row: Backbone, taps: tuple[str, ...] | None = None) -> Extractor:
    weights = find_weights(row, _weights(row))
    return build_extractor(row, weights=weights, taps=taps or row.taps, device=torch.device("cpu"))


def _weights(row: Backbone) -> str | None:
    return "random" if row.source else None


def _fastest(*works: Callable[[], object]) -> list[float]:
    """Smallest seconds of each, run in turns after one run that does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    begin = perf_counter()
    while len(seconds[0]) < 3 or (len(seconds[0]) < 10 and perf_counter() - begin < SECONDS):
        for work, times in zip(works, seconds, strict=True):
            start = perf_counter()
            work()
            times.append(perf_counter() - start)
    return [min(times[1:]) for times in seconds]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)


def _mb(count: int | None) -> int | None:
    return None if count is None else round(count / 1e6)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
