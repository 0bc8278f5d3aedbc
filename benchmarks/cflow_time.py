"""Seconds a training vector and a scored image: our CFLOW against anomalib's, in turns, one thread, one run.

    python -m venv peer && peer/bin/pip install anomalib==2.7.0 torch==2.13.0 torchvision==0.28.0
    python benchmarks/cflow_time.py --peer peer/bin/python

ResNet-18, layer1 to layer3, 256 px, 8 blocks, codes of 128 numbers, soft permutations, and 256 vectors of every layer a
step on both sides. Training: on given feature vectors, so without the network; from a difference of two lengths, so
without what comes once a run. Scoring: from pixels to maps, 8 images at once. Time depends on neither weights nor
images: both are random.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from _measure import median_seconds, run_json, write

TAPS, SHAPES = ("layer1", "layer2", "layer3"), ((64, 64), (128, 32), (256, 16))
"""Taps of ResNet-18, and (channels, side) of their maps at 256 px."""
VECTORS, IMAGES, SHORT, LONG, REPEATS = 256, 8, 10, 40, 3


@dataclass
class Given:
    """Images that bring their feature maps."""

    def __len__(self) -> int:
        return IMAGES

    def __iter__(self) -> Iterator[Any]:
        from blemish.types import ImageBatch

        random = torch.Generator().manual_seed(0)
        maps = {
            tap: torch.randn(IMAGES, c, side, side, generator=random)
            for tap, (c, side) in zip(TAPS, SHAPES, strict=True)
        }
        pixels = torch.rand(IMAGES, 3, 256, 256, generator=random)
        yield ImageBatch(pixels, tuple(map(str, range(IMAGES))), ((256, 256),) * IMAGES, maps)


def ours() -> dict[str, float]:
    """Runs in a process of its own."""
    from blemish.methods import cflow
    from blemish.types import ImageBatch

    cflow._LOOKS = 1  # the looks at held-out images are no steps
    seconds = {}
    for steps in (SHORT, LONG):
        method = cflow.CFlow(backbone="resnet18", weights="random", steps=steps, positions=VECTORS).fit(Given())
        seconds[steps] = method.course_.seconds
    batch = next(iter(Given()))
    plain = ImageBatch(batch.pixels, batch.names, batch.sizes)
    score = median_seconds(lambda: method.score(plain), REPEATS)
    return {"step": (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT), "image": score / IMAGES}


def peers() -> dict[str, float]:
    """Runs in the peer's environment."""
    if torch.version.cuda is None:  # as in `_anomalib_side.py`
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from types import SimpleNamespace

    from anomalib.models import Cflow

    bare = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}
    peer = Cflow(
        backbone="resnet18", layers=TAPS, pre_trained=False, fiber_batch_size=VECTORS, permute_soft=True, **bare
    )
    pixels = torch.rand(IMAGES, 3, 256, 256)
    score = median_seconds(lambda: peer.model(pixels), REPEATS)
    # Their own step, on maps of 16 x 16 = 256 vectors a layer, so that it is one update of each flow.
    maps = {tap: torch.randn(1, c, 16, 16) for tap, (c, _) in zip(TAPS, SHAPES, strict=True)}
    peer.model.encoder = torch.nn.Module()
    peer.model.encoder.forward = lambda _: maps
    optimiser = peer.configure_optimizers()
    peer.optimizers, peer.manual_backward, peer.log = (
        lambda: optimiser,
        lambda loss: loss.backward(),
        lambda *_, **__: None,
    )
    peer.model.train()
    batch = SimpleNamespace(image=torch.zeros(1, 3, 64, 64))
    for _ in range(SHORT):
        peer.training_step(batch)
    start = perf_counter()
    for _ in range(LONG - SHORT):
        peer.training_step(batch)
    return {"step": (perf_counter() - start) / (LONG - SHORT), "image": score / IMAGES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="python of the peer's environment")
    parser.add_argument("--rounds", type=int, default=2, help="ours, peer, ours, peer ...")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=["blemish", "anomalib"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side:
        print(json.dumps(ours() if options.side == "blemish" else peers()))
        return
    pythons = {"blemish": sys.executable} | ({"anomalib": str(options.peer)} if options.peer else {})
    rows: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for side, python in pythons.items():
            row = {"side": side, "round": number, **run_json([python, __file__, "--side", side])}
            rows.append(row)
            vector = row["step"] / (VECTORS * len(TAPS))
            print(
                f"{side:9} {vector * 1e6:7.1f} us a training vector   {row['image'] * 1e3:7.1f} ms an image", flush=True
            )
    if options.peer:
        for figure in ("step", "image"):
            best = {side: min(row[figure] for row in rows if row["side"] == side) for side in pythons}
            print(f"{figure}: anomalib / blemish = {best['anomalib'] / best['blemish']:.2f}")
    write(options.json, rows)


if __name__ == "__main__":
    main()
