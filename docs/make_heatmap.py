"""Make strips of images and heat maps: `python docs/make_heatmap.py DATASET OUT.png [--method NAME]`.

The pictures are chosen to explain, not to judge: of each kind the one where heat map and ground truth agree best. For
mistakes see a report. Of a method without maps the scores of all test images are drawn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish import METHODS, Detector, evaluate, open_dataset
from blemish.evaluation.detector import Evaluation
from blemish.images.decode import decode_mask
from blemish.parameters import parameters_of
from blemish.report.figures import scale_of, score_plot, tile

WIDTH, INNER, OUTER = 900, 2, 16
"""Width of the strip, gap inside a pair, and gap between pairs, in pixels."""
COLOURS = 200
"""Of the 255 colours of the PNG, those that are not grey."""
SHAPES = (0.38, 0.52)
"""Width over height of the images that fit side by side."""


def main() -> None:
    """Fit, choose, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path, help="dataset folder with masks, such as magnetic tile defects")
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--kinds", nargs="+", default=["blowhole", "break", "crack"])
    parser.add_argument("--method", default="padim")
    parser.add_argument("--model", type=Path, help="a fitted model, instead of a fit")
    parser.add_argument("--taps", nargs="+", help="layers to read")
    parser.add_argument("--retrieval", help="SPADE's layer for the nearest images")
    parser.add_argument("--steps", type=int, help="of training, for methods that train by steps")
    arguments = parser.parse_args()
    parameters: dict[str, Any] = {"taps": tuple(arguments.taps)} if arguments.taps else {}
    parameters |= {"retrieval": arguments.retrieval} if arguments.retrieval else {}
    parameters |= {"steps": arguments.steps} if arguments.steps else {}
    dataset = open_dataset(arguments.dataset)
    if arguments.model:
        detector = Detector.load(arguments.model)
    else:
        method = METHODS[arguments.method]
        parameters |= {"backbone": "resnet18"} if "backbone" in parameters_of(method) else {}
        detector = Detector(method=method(**parameters))
        detector.fit(dataset.train[::2] if len(dataset.train) > 500 else dataset.train)
    normal = [sample for sample in dataset.test if not sample.anomalous]
    wanted = [sample for sample in dataset.test if sample.kind in arguments.kinds]
    if arguments.method in ("knn", "gaussian"):
        plot = score_plot(evaluate(detector, dataset))
        assert plot is not None
        arguments.out.write_bytes(plot)
        return
    evaluation = evaluate(detector, replace(dataset, test=(*normal[::5], *wanted)))
    chosen = [i for kind in arguments.kinds for i in best(evaluation, kind)]
    if not chosen:
        parser.error(f"none of {arguments.kinds} is in {dataset.root}: {sorted({s.kind for s in dataset.test})}")
    save(strip(evaluation, chosen), arguments.out)


def best(evaluation: Evaluation, kind: str) -> list[int]:
    """Find the upright image of a kind whose pixels above the threshold overlap its mask best (or none)."""
    records = evaluation.records
    fitting = [i for i, r in enumerate(records) if r.sample.kind == kind and _is_upright(r.size)]
    fitting = fitting or [i for i, r in enumerate(records) if r.sample.kind == kind]
    return sorted(fitting, key=lambda i: overlap(evaluation, i))[-1:]


def overlap(evaluation: Evaluation, index: int) -> float:
    """Intersection over union of the mask and the pixels above the threshold, or, without one, as many as it has."""
    record, threshold = evaluation.records[index], evaluation.figures.threshold
    map = evaluation.map(index)
    if map is None or record.sample.mask is None:
        return 0.0
    small = Image.fromarray(decode_mask(record.sample.mask)).resize(map.shape[::-1], Image.Resampling.NEAREST)
    mask = np.asarray(small).astype(bool)
    above = map > (np.quantile(map, 1 - mask.mean()) if threshold is None else threshold)
    return float((mask & above).sum() / max(1, (mask | above).sum()))


def strip(evaluation: Evaluation, chosen: list[int]) -> Image.Image:
    """Put pairs of image and heat map side by side, all of one height, on a transparent ground."""
    scale = scale_of(evaluation)
    pairs = [tile(evaluation, i, scale=scale, side=320) for i in chosen]
    pictures = [picture for pair in pairs for picture in (pair.photo, pair.heat) if picture is not None]
    room = WIDTH - INNER * len(pairs) - OUTER * (len(pairs) - 1)
    height = int(room / sum(picture.width / picture.height for picture in pictures))
    canvas, left = Image.new("RGBA", (WIDTH, height)), 0
    for number, picture in enumerate(pictures):
        small = picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
        canvas.paste(small, (left, 0))
        left += small.width + (OUTER if number % 2 else INNER)
    return canvas.crop((0, 0, left - OUTER, height))


def save(image: Image.Image, path: Path) -> None:
    """Write a small PNG of 256 colours: few greys for the noisy photographs, the other colours for the heat maps."""
    pixels, solid = np.asarray(image.convert("RGB")), np.asarray(image.getchannel("A")) > 0
    coloured = pixels[np.ptp(pixels.astype(int), axis=2) > 12]
    colours = Image.fromarray(coloured[None]).quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=5).getpalette() or []
    greys = np.linspace(0, 255, 255 - COLOURS).round().astype(np.uint8).repeat(3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(bytes(colours[: 3 * COLOURS]) + greys.tobytes())
    indices = np.array(image.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE))
    indices[~solid] = 255
    small = Image.fromarray(indices)
    small.putpalette(palette.getpalette() or [])
    small.save(path, optimize=True, transparency=255)


def _is_upright(size: tuple[int, int]) -> bool:
    return SHAPES[0] <= size[1] / size[0] <= SHAPES[1]


if __name__ == "__main__":
    main()
