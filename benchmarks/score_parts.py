"""Where the time of a score goes: milliseconds of processor time an image with one thread, so on a busy machine too.

    python benchmarks/score_parts.py

`padim` and `patchcore` learn drawn images of 256 pixels on the compact backbone; then each part of a score is timed by
itself, with one image and with eight. `product` is what most of PaDiM's distances is, W z; `other order`: z^T W^T.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _measure import least_processor_seconds, write

from blemish import Detector
from blemish.images.drawn import clouds
from blemish.images.source import Batches, from_arrays
from blemish.methods import METHODS

IMAGES = {"padim": 140, "patchcore": 80}
"""Learned and held out: more than PaDiM's 100 dimensions are learned, so it has the dense form."""


def parts(name: str, images: int, size: int) -> dict[str, Any]:
    """One row."""
    detector = Detector(method=METHODS[name](), calibration="split", workers=1)
    detector.fit(list(clouds([(256, 256)] * images)))
    method: Any = detector.method_
    shown = from_arrays(list(clouds([(256, 256)] * size)))

    def decoded() -> Any:
        return next(iter(Batches(shown, detector.preprocessing, size, 1)))

    batch = decoded()
    with torch.inference_mode():
        maps = method.extractor_(batch.pixels)
        vectors = method._embed(maps)
        work = {
            "decode": decoded,
            "network": lambda: method.extractor_(batch.pixels),
            "embedding": lambda: method._embed(maps),
        }
        if name == "padim":
            work["distances"] = lambda: method.gaussian_.distances(vectors)
            z, factor = vectors.transpose(0, 1).contiguous(), method.gaussian_.factor
            transposed = factor.mT.contiguous()
            work["product"] = lambda: factor @ z.mT
            work["product, other order"] = lambda: z @ transposed
        else:
            work["search"] = lambda: method.bank_.search(vectors.flatten(0, 1), 1)
        work["score, from the maps"] = lambda: method._score(maps)
        scores = detector.score_batch(batch)
        work["decisions"] = lambda: list(detector.decisions(batch, scores))
        row = {part: round(1e3 * least_processor_seconds(one, 5) / size, 2) for part, one in work.items()}
    known = {} if name == "padim" else {"bank": len(method.bank_)}
    return {"method": name, "images": size} | known | row


def main() -> None:
    """Read the options, and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, images in IMAGES.items():
        for size in (1, 8):
            rows.append(parts(name, images, size))
            print(json.dumps(rows[-1]), flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
