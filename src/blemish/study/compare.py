"""What the rows of a study say: configurations averaged, compared and picked. Pure functions, nothing drawn.

A configuration is everything that a reader chooses: method with parameters, backbone, weights, layers, input size.
Data sets and seeds are what it is averaged over: first over the seeds of each data set, then over the data sets.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any, Literal, TypeVar

from ..features.backbones import BACKBONES
from ..images.groups import grouped
from ..metrics.table import TABLE

StudyRow = Mapping[str, Any]
"""One row of the store by column; see `store.COLUMNS`."""
Ends = tuple[float, float]
"""Of an interval."""
CostName = Literal["total_ms", "work_ms", "peak_bytes", "model_bytes"]

QUALITIES = {name: row.short for name, row in TABLE.items() if row.in_studies == "compared"}
"""Columns that compare configurations."""
KEPT = 0.9
"""Share of the best configuration's distance from guessing that the pick for speed must keep."""
REFERENCE = "resnet18"
GUESSING = 0.5
"""Image AUROC of scores that say nothing."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a configuration is, as the rows tell it."""

    method: str
    parameters: tuple[tuple[str, Any], ...]
    backbone: str
    weights: str
    """`pretrained`, `random`, `built-in` (a backbone that needs none), or a file."""
    taps: str
    """Joined by `+`; `default`: those that the method recommends."""
    resize: str
    crop: int | None
    held_out: float
    false_alarm_rate: float
    white_level: str | None

    @classmethod
    def of(cls, row: StudyRow) -> Configuration:
        """Read what a row combines, data set and seed apart."""
        known = BACKBONES.get(row["backbone"])
        built_in = known is not None and not known.source
        as_they_are = ("method", "backbone", "crop", "held_out", "false_alarm_rate")
        return cls(
            parameters=tuple(sorted(json.loads(row["parameters"]).items())),
            weights="built-in" if built_in else row["weights"],
            taps=row["taps"] or "default",
            resize=row["resize"].strip('"'),  # JSON: of a number, a list, or a text
            white_level=row["white_level"] and row["white_level"].strip('"'),
            **{name: row[name] for name in as_they_are},
        )

    @property
    def spec(self) -> str:
        """Method and parameters as a plan writes them."""
        return ",".join([self.method, *(f"{name}={value}" for name, value in self.parameters)])

    @property
    def dimensions(self) -> int | None:
        """The number of dimensions that a plan gave; None where it is the method's own."""
        value = dict(self.parameters).get("dimensions")
        return value if isinstance(value, int) else None

    def without(self, parameter: str) -> Configuration:
        """The same but for one parameter, which is left open."""
        return replace(self, parameters=tuple(item for item in self.parameters if item[0] != parameter))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A configuration that was measured on all data sets, and its means over them."""

    choice: Configuration
    figure: str = "image_auroc"
    quality: float
    """Of the figure."""
    interval: Ends | None
    """95 %, of the mean over the data sets; None where a cell has none."""
    by_dataset: Mapping[str, float]
    """Mean over the seeds."""
    seeds: int
    """The fewest on one data set."""
    decode_ms: float
    forward_ms: float
    score_ms: float
    fit_seconds: float
    peak_bytes: float
    """The largest of all cells, as is `model_bytes`; NaN where the system did not say."""
    model_bytes: float

    @property
    def merit(self) -> float:
        """The quality, turned so that larger is better."""
        return TABLE[self.figure].merit(self.quality)

    @property
    def total_ms(self) -> float:
        """Decoding, forward pass and scoring of one image."""
        return self.decode_ms + self.work_ms

    @property
    def work_ms(self) -> float:
        """Forward pass and scoring of one image."""
        return self.forward_ms + self.score_ms


@dataclass(frozen=True)
class Comparison:
    """All configurations that one figure can compare, best first; ties by time."""

    figure: str
    datasets: tuple[str, ...]
    """Those with this figure in at least one finished cell."""
    measured: tuple[Measured, ...]
    left_out: int
    """Configurations of the study without this figure on all these data sets."""

    @property
    def label(self) -> str:
        """What readers call the figure."""
        return QUALITIES[self.figure]


def compare_configurations(rows: Sequence[StudyRow], figure: str = "image_auroc") -> Comparison:
    """Average the configurations of a study that have a figure on every data set that has it at all."""
    finished = [row for row in _undisturbed(rows) if row[figure] is not None]
    datasets = tuple(dict.fromkeys(row["dataset"] for row in finished))
    bundles = grouped(finished, Configuration.of)
    measured = [
        _measured(choice, found, figure)
        for choice, found in bundles.items()
        if {row["dataset"] for row in found} == set(datasets)
    ]
    measured.sort(key=lambda m: (-m.merit, m.total_ms))
    return Comparison(figure, datasets, tuple(measured), len({Configuration.of(row) for row in rows}) - len(measured))


def _undisturbed(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Finished rows, times of decoding and forward passes replaced by the least of all rows that did the same work.

    Other work of the machine only adds to them.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    work = {"decode_ms": decoding, "forward_ms": _forwarding}
    least: dict[tuple[object, ...], float] = {}
    for row in finished:
        for column, same in work.items():
            least[same(row)] = min(row[column], least.get(same(row), math.inf))
    return [{**row, **{column: least[same(row)] for column, same in work.items()}} for row in finished]


def decoding(row: StudyRow) -> tuple[object, ...]:
    """What the time of decoding depends on."""
    return row["dataset"], row["resize"], row["crop"], row["white_level"], row["device"], row["threads"]


def _forwarding(row: StudyRow) -> tuple[object, ...]:
    precision = json.loads(row["parameters"]).get("precision")
    return *decoding(row), row["backbone"], row["taps"], row["method"], precision


def _measured(choice: Configuration, rows: Sequence[StudyRow], figure: str) -> Measured:
    by_dataset = grouped(rows, lambda row: row["dataset"])
    means = {name: fmean(row[figure] for row in found) for name, found in by_dataset.items()}
    quality = fmean(means.values())
    return Measured(
        choice=choice,
        figure=figure,
        quality=quality,
        interval=_interval(quality, by_dataset.values(), figure),
        by_dataset=means,
        seeds=min(len(found) for found in by_dataset.values()),
        **{
            column: fmean(fmean(row[column] for row in found) for found in by_dataset.values())
            for column in ("decode_ms", "forward_ms", "score_ms", "fit_seconds")
        },
        peak_bytes=_largest(rows, "peak_bytes"),
        model_bytes=_largest(rows, "model_bytes"),
    )


def _largest(rows: Sequence[StudyRow], column: str) -> float:
    return max((row[column] for row in rows if row[column] is not None), default=math.nan)


def _interval(quality: float, groups: Iterable[Sequence[StudyRow]], figure: str) -> Ends | None:
    """Interval of a mean over data sets, from those of the cells.

    Seeds of a data set share its test images, so their errors are one error: ends are averaged. Data sets have
    different images: lengths below and above add up as standard errors do, sqrt(sum of squares) / number.
    """
    below: list[float] = []
    above: list[float] = []
    for rows in groups:
        found = [json.loads(row["intervals"] or "{}").get(figure) for row in rows]
        if None in found:
            return None
        middle = fmean(row[figure] for row in rows)
        below.append(middle - fmean(low for low, _ in found))
        above.append(fmean(high for _, high in found) - middle)
    return quality - math.hypot(*below) / len(below), quality + math.hypot(*above) / len(above)


# Pareto fronts and picks


def pareto_front(measured: Iterable[Measured], cost: CostName) -> tuple[Measured, ...]:
    """Return the configurations that no other one beats, cheapest first; those without that cost are left out.

    One beats another if it is at least as good and costs no more, and is better or cheaper.
    """
    known = [m for m in measured if not math.isnan(getattr(m, cost))]
    front: list[Measured] = []
    for one in sorted(known, key=lambda m: (getattr(m, cost), -m.merit)):
        is_twin = bool(front) and _point(one, cost) == _point(front[-1], cost)
        if not front or is_twin or one.merit > front[-1].merit:
            front.append(one)
    return tuple(front)


def _point(one: Measured, cost: CostName) -> tuple[float, float]:
    return getattr(one, cost), one.quality


@dataclass(frozen=True)
class Picks:
    """Three configurations of one comparison; all lie on its Pareto front of quality against `total_ms`."""

    quality: Measured
    """The highest mean; of equal ones the fastest."""
    speed: Measured
    """The fastest of those that reach `bar`; of equal ones the best."""
    balance: Measured
    """The knee of the front between these two."""
    bar: float
    """GUESSING + KEPT * (best quality - GUESSING); the best quality where that is no better than guessing."""
    overlapping: tuple[Measured, ...]
    """The others whose 95 % interval overlaps that of `quality`."""


def pick(measured: Sequence[Measured]) -> Picks:
    """Choose from at least one configuration of a comparison by image AUROC."""
    best = min(measured, key=lambda m: (-m.quality, m.total_ms))
    bar = min(best.quality, GUESSING + KEPT * (best.quality - GUESSING))
    fastest = min((m for m in measured if m.quality >= bar), key=lambda m: (m.total_ms, -m.quality))
    between = [m for m in pareto_front(measured, "total_ms") if m.quality >= bar]
    return Picks(
        quality=best,
        speed=fastest,
        balance=_knee(between, best),
        bar=bar,
        overlapping=tuple(m for m in measured if m is not best and overlap(m.interval, best.interval)),
    )


def _knee(front: Sequence[Measured], best: Measured) -> Measured:
    """Return the point farthest above the line between a front's ends, over log(time); `best` if none lies above it."""
    start, end = front[0], front[-1]
    if start.quality == end.quality or not start.total_ms > 0:
        return best

    def height(one: Measured) -> float:
        across = math.log(one.total_ms / start.total_ms) / math.log(end.total_ms / start.total_ms)
        return (one.quality - start.quality) / (end.quality - start.quality) - across

    highest = max(front, key=height)
    return highest if height(highest) > 0 else best


def reference_ms(measured: Sequence[Measured]) -> tuple[str, float]:
    """What ratios of time refer to, and its milliseconds: the median of resnet18, or of all where it is missing."""
    known = [m.total_ms for m in measured if m.choice.backbone == REFERENCE]
    if known:
        return f"the median of the configurations on {REFERENCE}", median(known)
    return "the median configuration", median(m.total_ms for m in measured)


def overlap(one: Ends | None, other: Ends | None) -> bool:
    """Whether two intervals have a point in common; False where one is not known."""
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


# What one part of a configuration is worth


@dataclass(frozen=True)
class LayerGrid:
    """Mean quality over rows and columns of one table; pairs that were not measured are missing."""

    name: Configuration
    """Any configuration of the table: backbone and weights are those of all."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[str, str], float]

    def mean(self, row: str) -> float | None:
        """Mean of a row over the columns that all rows have, so that rows compare; None for no such column."""
        shared = [c for c in self.columns if all((r, c) in self.values for r in self.rows)]
        return fmean(self.values[row, c] for c in shared) if shared else None


def by_layers(measured: Iterable[Measured]) -> list[LayerGrid]:
    """For each backbone: tap subsets x method specifications with at least two of them, the best backbone first."""
    grids = []
    for found in grouped(measured, lambda m: (m.choice.backbone, m.choice.weights)).values():
        cells = grouped(found, lambda m: (m.choice.taps, m.choice.spec))
        subsets = Counter(spec for _, spec in cells)
        values = {cell: fmean(m.quality for m in some) for cell, some in cells.items() if subsets[cell[1]] > 1}
        if values:
            rows = sorted({taps for taps, _ in values}, key=_depth)
            columns = sorted({spec for _, spec in values}, key=_natural)
            grids.append(LayerGrid(found[0].choice, tuple(rows), tuple(columns), values))
    return grids


def _depth(taps: str) -> tuple[bool, int, Any]:
    """Order of subsets: the method's own, then by number of layers, then by name."""
    return taps != "default", taps.count("+"), _natural(taps)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order of names as a reader counts: layer2 before layer10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True)
class DimensionCurve:
    """Quality over the number of dimensions, at least two of them."""

    name: Configuration
    """Method, backbone and weights; `dimensions` is left open, and taps are any of those averaged."""
    taps: int
    """How many tap subsets each point is the mean of."""
    points: tuple[tuple[int, float], ...]


def by_dimensions(measured: Iterable[Measured]) -> list[DimensionCurve]:
    """For each method and backbone the mean over the tap subsets that have all its dimensions, the best first."""
    curves = []
    given = [m for m in measured if m.choice.dimensions is not None]
    for found in grouped(given, lambda m: replace(m.choice.without("dimensions"), taps="")).values():
        numbers = sorted({m.choice.dimensions or 0 for m in found})
        whole = [
            {m.choice.dimensions: m.quality for m in some}
            for some in grouped(found, lambda m: m.choice.taps).values()
            if len(some) == len(numbers)
        ]
        if len(numbers) > 1 and whole:
            points = tuple((d, fmean(values[d] for values in whole)) for d in numbers)
            curves.append(DimensionCurve(found[0].choice.without("dimensions"), len(whole), points))
    return sorted(curves, key=lambda curve: -max(quality for _, quality in curve.points))


def best_of_each(measured: Iterable[Measured]) -> list[Measured]:
    """The best configuration of each method, backbone and weights, best first."""
    kept: dict[tuple[str, str, str], Measured] = {}
    for one in sorted(measured, key=lambda m: (-m.merit, m.total_ms)):
        kept.setdefault((one.choice.method, one.choice.backbone, one.choice.weights), one)
    return list(kept.values())


@dataclass(frozen=True, order=True)
class Kind:
    """One kind of defect of one data set."""

    dataset: str
    kind: str
    images: int


def by_kind(rows: Iterable[StudyRow], choices: Sequence[Configuration]) -> dict[Kind, dict[Configuration, float]]:
    """Image AUROC of each kind of defect against the normal images, mean over the seeds."""
    found: dict[tuple[Kind, Configuration], list[float]] = {}
    for row in rows:
        choice = Configuration.of(row)
        if row["status"] != "finished" or choice not in choices:
            continue
        for kind in json.loads(row["rest"] or "{}").get("kinds", ()):
            if kind["image_auroc"] is not None:
                name = Kind(row["dataset"], kind["kind"], kind["images"])
                found.setdefault((name, choice), []).append(kind["image_auroc"])
    table: dict[Kind, dict[Configuration, float]] = {}
    for (kind, choice), values in found.items():
        table.setdefault(kind, {})[choice] = fmean(values)
    return table


# Random against pretrained


@dataclass(frozen=True)
class WeightsPair:
    """The same method, backbone, layers and data set with pretrained and with random weights."""

    choice: Configuration
    """The pretrained one."""
    dataset: str
    pretrained: tuple[float, ...]
    """A value a seed."""
    random: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Mean over the seeds, pretrained minus random."""
        return fmean(self.pretrained) - fmean(self.random)


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n - 1); None for one seed."""
    return stdev(values) if len(values) > 1 else None


def pair(rows: Iterable[StudyRow], figure: str = "image_auroc") -> list[WeightsPair]:
    """Pair finished cells that differ in weights and seed alone; a file of weights is pretrained."""
    finished = [row for row in rows if row["status"] == "finished" and row[figure] is not None]
    values: dict[tuple[Configuration, str], list[float]] = {}
    for row in finished:
        values.setdefault((Configuration.of(row), row["dataset"]), []).append(row[figure])
    return [
        WeightsPair(choice, dataset, tuple(found), tuple(other))
        for (choice, dataset), found in values.items()
        if choice.weights not in ("random", "built-in")
        and (other := values.get((replace(choice, weights="random"), dataset)))
    ]
