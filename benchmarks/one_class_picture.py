"""What methods take for normal, from the rows that `one_class.py --json` has written.

    python benchmarks/one_class_picture.py cifar10 rows.json panda.png --limit 200 --methods knn,normalise=true panda

For each class, and each method in a row of its own: images at even steps among those that score lowest, as many as
there are normal ones in the test. Those that are not normal have a red frame: without any mistake, none would.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from one_class import limited
from PIL import Image

from blemish import Batches, Preprocess
from blemish.datasets.labelled import open_parts

SIDE, FRAME, GAP = 48, 3, 14
COLUMNS = 17
RED = (214, 39, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--limit", type=int, help="as it was for the rows")
    options = parser.parse_args()
    train, test = open_parts(options.data)
    test = limited(test or train.split(0.2, seed=0)[1], options.limit)
    kinds = np.array(test.class_names())
    rows = {(row["label"], row["method"]): row for row in json.loads(options.rows.read_text())}
    labels = sorted({label for label, method in rows if method in options.methods})
    chosen = {
        key: lowest(rows[key], kinds) for label in labels for method in options.methods if (key := (label, method))
    }
    pictures = thumbnails(test, sorted(set(np.concatenate(list(chosen.values())).tolist())))
    step = SIDE + 2 * FRAME
    height = len(labels) * (len(options.methods) * step + GAP) - GAP
    canvas = Image.new("RGB", (COLUMNS * step, height), "white")
    for number, (key, found) in enumerate(chosen.items()):
        top = number * step + number // len(options.methods) * GAP
        for column, i in enumerate(found.tolist()):
            if kinds[i] != key[0]:
                canvas.paste(RED, (column * step, top, (column + 1) * step, top + step))
            canvas.paste(pictures[i], (column * step + FRAME, top + FRAME))
    canvas.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(options.out, optimize=True)


def lowest(row: dict[str, Any], kinds: NDArray[np.str_]) -> NDArray[np.intp]:
    """Images at even steps among as many as are normal, those that score lowest."""
    normal = int((kinds == row["label"]).sum())
    return np.argsort(row["scores"], kind="stable")[:normal][np.linspace(0, normal - 1, COLUMNS).round().astype(int)]


def thumbnails(test: Any, indices: list[int]) -> dict[int, Image.Image]:
    """Small pictures of some of the test images."""
    pixels = [batch.pixels for batch in Batches(test.subset(indices).source, Preprocess(SIDE), 32)]
    arrays = [(image * 255).round().byte().permute(1, 2, 0).numpy() for part in pixels for image in part]
    return dict(zip(indices, map(Image.fromarray, arrays), strict=True))


if __name__ == "__main__":
    main()
