"""Pictures of an evaluation: plots as PNG, photographs and heat maps as WebP. Nothing here keeps global state.

The heat-map colours have one scale for all images. It begins at the usual value of a normal pixel and has the
detector's threshold exactly half-way, linear on both sides, so a pixel in the upper half made its image anomalous.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from .. import metrics
from ..errors import ImageError
from ..evaluation.detector import Evaluation
from ..evaluation.masks import Masks
from ..images.decode import MAX_PIXELS, as_image, decode
from ..types import Size
from .overlay import draw_regions, photograph

NORMAL, ANOMALOUS, INK, FAINT = "#2f6fab", "#d4572a", "#22272e", "#8b949e"
OUTLINE = (0, 229, 255)
"""RGB of the ground-truth contour: a hue that the heat map does not use."""
REGION = (255, 255, 255)
"""RGB of the contour of the region of interest."""
COLOURS = "inferno"
"""Perceptually uniform, and readable with every kind of colour blindness."""
SIDE = 320
"""Long side of a tile in pixels."""
MAX_KINDS = 16
"""Rows of the score plot."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The colour scale of all heat maps of one evaluation, in score units."""

    low: float
    """The median pixel of the normal test images."""
    high: float
    threshold: float | None
    """Half-way where the detector has one and the image score is the largest value of the map; else None."""

    def place(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Bring map values of any shape to [0, 1]; NaN stays NaN."""
        middle = (self.low + self.high) / 2 if self.threshold is None else self.threshold
        placed: NDArray[np.float64] = np.interp(values, (self.low, middle, self.high), (0.0, 0.5, 1.0))
        return placed


@dataclass(frozen=True, slots=True)
class Tile:
    """One test image for the gallery, both pictures of the same size."""

    photo: Image.Image | None
    """With the contours of the regions that were found; None where the file can no longer be read."""
    heat: Image.Image | None
    """With the heat map, where there is one, and the ground-truth contour; None where there is neither."""
    remark: str = ""
    """What could not be read."""


def scale_of(evaluation: Evaluation) -> Scale | None:
    """Choose the colour scale; None for an evaluation without maps."""
    maps = evaluation.maps
    if maps is None or not len(maps):
        return None
    chosen = [i for i, record in enumerate(evaluation.records) if not record.sample.anomalous] or range(len(maps))
    some, inside = chosen[:: max(1, len(chosen) // 64)], evaluation.inside
    low = float(np.median(maps[some, ::4, ::4] if inside is None else maps[some][inside[some]]))
    peaks = maps.max(axis=(1, 2), initial=-np.inf, where=True if inside is None else inside)
    scores = np.array([record.decision.score for record in evaluation.records])
    threshold = evaluation.figures.threshold if np.allclose(peaks, scores, rtol=1e-4) else None
    strong = float(np.quantile(peaks, 0.95))
    if threshold is None or threshold <= low:
        return Scale(low, max(strong, low + 1e-6 + 1e-6 * abs(low)), None)
    # Steeper above the threshold than below it would make weak alarms look strong.
    return Scale(low, max(strong, 2 * threshold - low), threshold)


def tile(evaluation: Evaluation, index: int, *, scale: Scale | None, side: int = SIDE) -> Tile:
    """Make the two pictures of one record, `side` pixels long; files that cannot be read leave a remark."""
    record = evaluation.records[index]
    limit = max(MAX_PIXELS, record.size[0] * record.size[1])  # it was judged, so it may be shown
    try:
        photo = photograph(as_image(decode(record.sample.path, max_pixels=limit)), side)
    except ImageError:
        return Tile(None, None, "The image file can no longer be read.")
    size: Size = (photo.height, photo.width)
    marked = draw_regions(photo, record.decision.regions or (), record.size)
    mask, remark = None, ""
    try:
        mask = Masks(max_pixels=limit).of(record.sample, record.size)
    except ImageError:
        remark = "The mask file can no longer be read."
    # Straight on the tile, without the detour over many millions of original pixels.
    map = None if evaluation.maps is None else evaluation.place(index, size)
    if map is None and mask is None and evaluation.inside is None:
        return Tile(marked, None, remark)
    heat = photo if map is None or scale is None else overlay(photo, map, scale=scale)
    if evaluation.inside is not None:
        region = evaluation.preprocess.inside(torch.from_numpy(evaluation.inside[index]), size)
        heat = outline(heat, region, colour=REGION)
    return Tile(marked, heat if mask is None else outline(heat, mask), remark)


def overlay(photo: Image.Image, map: NDArray[np.floating], *, scale: Scale) -> Image.Image:
    """Lay a `(height, width)` map over the grey version of an RGB image of that size; hatch where the map is NaN."""
    grey = np.asarray(photo.convert("L"), dtype=np.float64)[..., None].repeat(3, axis=2)
    blind = np.isnan(map)
    values = scale.place(np.where(blind, scale.low, map))
    opacity = _opacity(values)[..., None]
    mixed = grey * (1 - opacity) + _colours(values) * opacity
    if scale.threshold is not None:
        line = _level_line(map, scale.threshold)[..., None]
        mixed = mixed * (1 - line) + 255 * line
    rows, columns = np.indices(map.shape)
    stripes = ((rows + columns) // 5 % 2).astype(np.float64)
    mixed[blind] = (0.35 * grey + 100 + 34 * stripes[..., None])[blind]
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def outline(photo: Image.Image, mask: NDArray[np.bool_], *, colour: tuple[int, int, int] = OUTLINE) -> Image.Image:
    """Draw the contour of a `(height, width)` mask of any scale around, not on, the masked pixels of an RGB image."""
    width, height = photo.size
    fitted = Image.fromarray(mask.astype(np.uint8) * 255).resize((2 * width, 2 * height), Image.Resampling.BOX)
    inside = np.asarray(fitted) > 0
    if not inside.any() or inside.all():
        return photo
    distance = ndimage.distance_transform_edt(~inside)
    pixels = np.asarray(photo, dtype=np.float64)
    # Drawn at twice the size and averaged, so that the line is smooth; a dark rim makes it show on bright images.
    for reach, ink, strength in ((6.0, (0, 0, 0), 0.45), (3.5, colour, 1.0)):
        line = ((distance > 0) & (distance <= reach)).reshape(height, 2, width, 2).mean(axis=(1, 3))[..., None]
        pixels = pixels * (1 - strength * line) + np.array(ink) * strength * line
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def scale_strip() -> bytes:
    """Draw the colour scale from low (left) to high as it looks over mid-grey pixels, as WebP."""
    values = np.broadcast_to(np.linspace(0, 1, 400), (24, 400))
    opacity = _opacity(values)[..., None]
    return webp(Image.fromarray(np.round(128 * (1 - opacity) + _colours(values) * opacity).astype(np.uint8)))


def score_plot(evaluation: Evaluation) -> bytes | None:
    """Draw the histogram of the scores, and each image as a dot in the row of its kind, as PNG; None without images."""
    if not evaluation.records:
        return None
    rows = _rows(evaluation)
    figure = Figure(figsize=(6.2, 2.3 + 0.27 * len(rows)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 0.27 * len(rows) + 0.2])
    scores = np.array([record.decision.score for record in evaluation.records])
    anomalous = np.array([record.sample.anomalous for record in evaluation.records])
    _histogram(above, scores, anomalous)
    _strips(below, scores, anomalous, rows)
    if evaluation.figures.threshold is not None:
        _threshold_line(above, below, evaluation.figures.threshold)
    return png(figure)


def roc_plot(evaluation: Evaluation) -> bytes | None:
    """Draw the ROC curve with the operating point, as PNG; None where one class is missing."""
    figures = evaluation.figures
    if figures.image_auroc is None:
        return None
    curve = metrics.roc_curve(
        np.array([record.decision.score for record in evaluation.records], dtype=np.float64),
        np.array([record.sample.anomalous for record in evaluation.records]),
    )
    figure = Figure(figsize=(3.8, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "guessing", (72, 70), rotation=45, rotation_mode="anchor", va="top", ha="center", color="#6b737c", fontsize=9
    )
    axes.plot(100 * curve.fpr, 100 * curve.tpr, color=INK, linewidth=1.8)
    axes.fill_between(100 * curve.fpr, 100 * curve.tpr, color=INK, alpha=0.06, linewidth=0)
    if figures.false_alarms is not None and figures.misses is not None:
        _operating_point(axes, 100 * figures.false_alarms, 100 - 100 * figures.misses)
    axes.set(xlim=(-1.5, 101.5), ylim=(-1.5, 101.5), aspect="equal")
    axes.set_xlabel("normal images called anomalous (%)")
    axes.set_ylabel("anomalous images found (%)")
    tidy(axes, grid="both")
    return png(figure)


def webp(image: Image.Image) -> bytes:
    """Encode an RGB image for the page."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


def _colours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour values in [0, 1]: any shape in, that shape and 3 channels in [0, 255] out."""
    return np.asarray(mpl.colormaps[COLOURS](values))[..., :3] * 255


def _opacity(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let the photograph show where there is nothing to see on the map."""
    return 0.8 * np.clip(2 * values, 0, 1) ** 1.5


def _level_line(map: NDArray[np.floating], level: float) -> NDArray[np.float64]:
    """Draw a smooth line of about 1.5 pixels where a `(height, width)` map crosses a level: strengths in [0, 1]."""
    if min(map.shape) < 2:
        return np.zeros(map.shape)
    down, right = np.gradient(map.astype(np.float64))
    distance = np.abs(map - level) / np.maximum(np.hypot(down, right), 1e-12)
    strength: NDArray[np.float64] = np.nan_to_num(np.clip(1.25 - distance, 0, 1))
    return strength


def _histogram(axes: Axes, scores: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> None:
    edges = np.histogram_bin_edges(scores, bins=min(40, max(8, len(scores) // 6)))
    for chosen, colour, label in ((~anomalous, NORMAL, "normal"), (anomalous, ANOMALOUS, "anomalous")):
        if chosen.any():
            counts, _ = np.histogram(scores[chosen], bins=edges)
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35, label=f"{label} ({int(chosen.sum())})")
            axes.stairs(counts, edges, color=colour, linewidth=1.2)
    axes.legend(frameon=False, loc="upper right", fontsize=9, handlelength=1.2)
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(x=0.02)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    tidy(axes)


def _rows(evaluation: Evaluation) -> list[tuple[str, NDArray[np.bool_]]]:
    """Name the rows of the score plot, and say which records are in each; the last row takes the kinds too many."""
    names = np.array([record.sample.kind for record in evaluation.records])
    kinds = [kind.kind for kind in evaluation.kinds]
    room = len(kinds) if len(kinds) <= MAX_KINDS else MAX_KINDS - 1
    rows = [(kind, names == kind) for kind in kinds[:room]]
    rest = kinds[room:]
    return [*rows, (f"{len(rest)} other kinds", np.isin(names, rest))] if rest else rows


def _strips(
    axes: Axes, scores: NDArray[np.float64], anomalous: NDArray[np.bool_], kinds: list[tuple[str, NDArray[np.bool_]]]
) -> None:
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))
    for row, (_, chosen) in enumerate(kinds):
        colours = np.where(anomalous[chosen], ANOMALOUS, NORMAL)
        axes.scatter(scores[chosen], row + spread[chosen], s=11, c=colours, alpha=0.6, linewidths=0)
    axes.set_yticks(range(len(kinds)), [drawable(kind) for kind, _ in kinds], parse_math=False)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlabel("image score (larger = more anomalous)")
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _threshold_line(above: Axes, below: Axes, threshold: float) -> None:
    for axes in (above, below):
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    above.annotate(
        f"threshold {threshold:.4g}", (threshold, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points", ha="center", va="bottom", fontsize=9, color=INK, annotation_clip=False,
    )  # fmt: skip


def _operating_point(axes: Axes, fpr: float, tpr: float) -> None:
    axes.plot([fpr], [tpr], "o", color=ANOMALOUS, markersize=8, markeredgecolor="white", markeredgewidth=1.2, zorder=5)
    left = fpr > 55
    axes.annotate(
        "at the threshold", (fpr, tpr), xytext=(-10 if left else 10, -2), textcoords="offset points",
        ha="right" if left else "left", va="top" if tpr > 15 else "bottom", color=ANOMALOUS, fontsize=9, zorder=6,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip


def tidy(axes: Axes, *, grid: Literal["both", "x"] | None = None) -> None:
    """Leave only what is needed to read the numbers, and lines to follow them by."""
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b5bcc4")
    axes.tick_params(color="#b5bcc4", labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    if grid is not None:
        axes.grid(axis=grid, color="#e6e8eb", linewidth=0.8)


def drawable(text: str, length: int = 24) -> str:
    """Shorten a name, and replace letters that the plot's font does not have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font: Any = get_font(findfont(FontProperties()))
    short = text if len(text) <= length else f"{text[: length - 1]}…"
    return "".join(letter if font.get_char_index(ord(letter)) else "□" for letter in short)


def png(figure: Figure) -> bytes:
    """Encode a figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()
