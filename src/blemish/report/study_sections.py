"""The sections of a report on a study, each a question that a reader may have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from ..images.groups import grouped
from ..metrics.table import TABLE
from ..study import compare as study
from ..study.compare import Comparison, Configuration, CostName, Measured, StudyRow, WeightsPair
from . import study_figures as draw
from . import study_words as words
from .page import NOTHING, counted, plot_of
from .parts import Column, Entry, Panel, Plots, Section, Table
from .study_words import Names, figure, megabytes, short

SIDE_BY_SIDE = 8
"""Most configurations side by side in the table of data sets."""
DRAWN = 6
"""Most backbones, or curves, in pictures."""
LISTED = {name: row for name, row in TABLE.items() if row.in_studies != "no"}
"""Figures in the table of all cells."""
UNFOLDED = 24
"""Most kinds of defects that are seen without a click."""


def sections_of(rows: Sequence[StudyRow], comparisons: Sequence[Comparison], names: Names) -> list[Section]:
    """All sections for which there is something to show."""
    sections = [
        *(_comparing_sections(rows, comparisons, names) if comparisons else ()),
        _cells_section(rows, names),
        _unfinished_section(rows, names),
        _facts_section(rows),
    ]
    return [section for section in sections if section.panels]


def _comparing_sections(rows: Sequence[StudyRow], comparisons: Sequence[Comparison], names: Names) -> Iterator[Section]:
    yield _ranking_section(comparisons, names)
    yield Section("Quality against cost", _ON_FRONTS, [_pareto_panel(c, names) for c in comparisons])
    yield _layer_section(comparisons)
    yield _dimension_section(comparisons, names)
    yield _dataset_section(comparisons, names)
    yield _kind_section(rows, comparisons[0], names)
    yield _weights_section(rows, comparisons, names)
    yield _cost_section(comparisons[0])


def number_entry(value: float | None, text: str, note: str = "", *, is_best: bool = False) -> Entry:
    """A number that can be sorted by; a dash where there is none."""
    unknown = value is None or math.isnan(value)
    return Entry(NOTHING if unknown else text, note, None if unknown else value, is_best and not unknown)


def quality_entry(value: float | None, best: float | None = None, note: str = "") -> Entry:
    """A figure in [0, 1], the best one emphasised."""
    return number_entry(value, figure(value), note, is_best=value is not None and value == best)


def words_column(name: str, *, filter: bool = False) -> Column:
    """A column of texts."""
    return Column(name, is_number=False, filter=filter)


def _identity(choice: Configuration, names: Names) -> list[Entry]:
    plain = (choice.backbone, words.weights_name(choice.weights), choice.taps)
    return [Entry(choice.spec, names.settings(choice)), *map(Entry, plain)]


IDENTITY = tuple(map(words_column, ("Method", "Backbone", "Weights", "Layers")))


def _ranking_section(comparisons: Sequence[Comparison], names: Names) -> Section:
    reference, _ = study.reference_ms(comparisons[0].measured)
    return Section(
        "All configurations",
        (
            "Best first; an interval that overlaps the best one's is marked ≈. The time of an image is decode + "
            f"forward + score; absolute times are those of the machine that ran the study, ratios are to {reference}.",
        ),
        [Panel(c.label, _compared(c), [_ranking(c, names)]) for c in comparisons],
    )


def _compared(comparison: Comparison) -> tuple[str, ...]:
    sets, found = counted(len(comparison.datasets), "data set"), counted(len(comparison.measured), "configuration")
    return (f"{found}, {sets}.{words.left_out(comparison)}",)


def _ranking(comparison: Comparison, names: Names) -> Table:
    best = comparison.measured[0]
    _, reference = study.reference_ms(comparison.measured)
    columns = (
        *IDENTITY, Column(comparison.label, "95 % interval"), Column("Seeds"), Column("ms an image"),
        Column("ratio"), Column("fit s"), Column("peak MB"), Column("model MB"),
    )  # fmt: skip
    rows = []
    for m in comparison.measured:
        near = m is not best and study.overlap(m.interval, best.interval)
        quality = quality_entry(m.quality, best.quality, words.between(m.interval) + (" ≈" if near else ""))
        seeds = number_entry(m.seeds, str(m.seeds))
        rows.append([*_identity(m.choice, names), quality, seeds, *_costs(m, reference)])
    return Table(columns, rows)


def _costs(m: Measured, reference: float) -> list[Entry]:
    ratio = m.total_ms / reference
    return [
        number_entry(m.total_ms, short(m.total_ms)),
        number_entry(ratio, words.times(ratio)),
        number_entry(m.fit_seconds, short(m.fit_seconds)),
        number_entry(m.peak_bytes, megabytes(m.peak_bytes)),
        number_entry(m.model_bytes, megabytes(m.model_bytes)),
    ]


COST_NAMES: dict[CostName, str] = {
    "total_ms": "decode + forward + score", "work_ms": "forward + score", "peak_bytes": "peak memory",
    "model_bytes": "model file",
}  # fmt: skip


_ON_FRONTS = (
    "On a front lies what no other configuration beats in both. Numbers, where there is room, are those of the table "
    "below.",
    "Time is that of one image: the least of all cells that did the same. Peak memory is that of the study's process, "
    "with the features that its cells share: a fit by itself holds less.",
)


def _pareto_panel(comparison: Comparison, names: Names) -> Panel:
    fronts = {cost: study.pareto_front(comparison.measured, cost) for cost in COST_NAMES}
    listed = [m for m in comparison.measured if any(m in front for front in fronts.values())]
    numbers = {m.choice: number for number, m in enumerate(listed, 1)}
    plots = [
        plot_of(
            draw.pareto_plot(
                comparison.measured, front, numbers=[numbers[m.choice] for m in front], cost=cost,
                quality=comparison.label,
            ),
            f"{comparison.label} against {COST_NAMES[cost]}; on the front: "
            f"{', '.join(names(m.choice) for m in front)}.",
        )
        for cost, front in fronts.items() if front
    ]  # fmt: skip
    columns = (
        words_column("No."), *IDENTITY, Column(comparison.label),
        Column("ms an image", COST_NAMES["total_ms"]), Column("ms an image", COST_NAMES["work_ms"]),
        Column("peak MB"), Column("model MB"),
    )  # fmt: skip
    rows = []
    for m in listed:
        costs = (m.total_ms, m.work_ms, m.peak_bytes / 1e6, m.model_bytes / 1e6)
        number = number_entry(numbers[m.choice], str(numbers[m.choice]))
        rows.append(
            [number, *_identity(m.choice, names), quality_entry(m.quality)]
            + [number_entry(v, short(v), is_best=m in fronts[cost]) for v, cost in zip(costs, COST_NAMES, strict=True)]
        )
    return Panel(comparison.label, ("Bold: on the front of that cost.",), [Plots(plots), Table(columns, rows)])


def _layer_section(comparisons: Sequence[Comparison]) -> Section:
    panels = []
    for comparison in comparisons:
        grids = study.by_layers(comparison.measured)
        specs = list(dict.fromkeys(spec for grid in grids for spec in grid.columns))
        if grids:
            what = f"{comparison.label} of each set of layers of"
            plots = [
                plot_of(
                    draw.layer_plot(grid, specs, comparison.label),
                    f"{what} {grid.name.backbone}; best: {max(grid.values, key=grid.values.__getitem__)[0]}.",
                )
                for grid in grids[:DRAWN]
            ]
            table = _layer_table(grids, specs)
            panels.append(Panel(comparison.label, _drawn(len(grids), "backbone"), [Plots(plots), table]))
    return Section(
        "Layers",
        (
            "Each set of layers, averaged over data sets and seeds, a column a method with at least two. The mean is "
            "over the methods that were measured on all sets of layers of that backbone. Bold: the best of a backbone.",
        ),
        panels,
    )


def _drawn(count: int, noun: str) -> tuple[str, ...]:
    return (f"Drawn: the best {DRAWN} of {counted(count, noun)}; the table holds all.",) if count > DRAWN else ()


def _layer_table(grids: Sequence[study.LayerGrid], specs: Sequence[str]) -> Table:
    columns = (*IDENTITY[1:], *(Column(spec.replace(",", " ")) for spec in specs), Column("Mean"))
    rows = []
    for grid in grids:
        means = {row: grid.mean(row) for row in grid.rows}
        best = {spec: max(grid.values.get((row, spec), -1.0) for row in grid.rows) for spec in specs}
        best_mean = max((mean for mean in means.values() if mean is not None), default=None)
        weights = Entry(words.weights_name(grid.name.weights))
        for row in grid.rows:
            values = [quality_entry(grid.values.get((row, spec)), best[spec]) for spec in specs]
            mean = quality_entry(means[row], best_mean)
            rows.append([Entry(grid.name.backbone), weights, Entry(row), *values, mean])
    return Table(columns, rows)


def _dimension_section(comparisons: Sequence[Comparison], names: Names) -> Section:
    panels = []
    for comparison in comparisons:
        curves = study.by_dimensions(comparison.measured)
        if curves:
            drawn = draw.dimension_plot(curves[:DRAWN], comparison.label)
            plots = Plots([plot_of(drawn, "Quality over dimensions, a line a row.")])
            table = _dimension_table(curves, names)
            panels.append(Panel(comparison.label, _drawn(len(curves), "curve"), [plots, table]))
    return Section(
        "Dimensions",
        (
            "Numbers of embedding dimensions that the plan named, averaged over data sets, seeds, and the sets of "
            "layers that were measured with all numbers of their row. Bold: the best of a row.",
        ),
        panels,
    )


def _dimension_table(curves: Sequence[study.DimensionCurve], names: Names) -> Table:
    numbers = sorted({d for curve in curves for d, _ in curve.points})
    columns = (*IDENTITY[:3], Column("Sets of layers"), *(Column(f"d = {d}") for d in numbers))
    rows = []
    for curve in curves:
        values = dict(curve.points)
        best = max(values.values())
        rows.append(
            [*_identity(curve.name, names)[:3], number_entry(curve.taps, str(curve.taps))]
            + [quality_entry(values.get(d), best) for d in numbers]
        )
    return Table(columns, rows)


def _dataset_section(comparisons: Sequence[Comparison], names: Names) -> Section:
    panels = []
    for comparison in comparisons:
        found, merit = study.best_of_each(comparison.measured), TABLE[comparison.figure].merit
        shown = found[:SIDE_BY_SIDE]
        lead = f"The best configuration of each method, backbone and weights: {len(shown)} of {len(found)}."
        lines = [(names.datasets[path], [m.by_dataset[path] for m in shown]) for path in comparison.datasets]
        lines.append(("Mean", [m.quality for m in shown]))
        rows = [[Entry(name), *(quality_entry(v, max(values, key=merit)) for v in values)] for name, values in lines]
        columns = (words_column("Data set"), *(_column(m.choice) for m in shown))
        panels.append(Panel(comparison.label, (lead,), [Table(columns, rows)]))
    return Section("Data sets", ("Means over the seeds. Bold: the best of a row.",), panels)


def _column(choice: Configuration) -> Column:
    weights = [] if choice.weights in ("pretrained", "built-in") else [words.weights_name(choice.weights)]
    return Column(choice.spec.replace(",", " "), ", ".join([choice.backbone, *weights, choice.taps]))


def _kind_section(rows: Sequence[StudyRow], comparison: Comparison, names: Names) -> Section:
    shown = [m.choice for m in study.best_of_each(comparison.measured)[:SIDE_BY_SIDE]]
    table = study.by_kind(rows, shown)
    lines = []
    for kind in sorted(table, key=lambda kind: (names.datasets[kind.dataset], kind.kind)):
        best = max(table[kind].values())
        name = Entry(f"{names.datasets[kind.dataset]}: {kind.kind}", counted(kind.images, "image"))
        lines.append([name, *(quality_entry(table[kind].get(choice), best) for choice in shown)])
    columns = (words_column("Kind of defect"), *(_column(choice) for choice in shown))
    folded = f"All {len(lines)} kinds" if len(lines) > UNFOLDED else ""
    lead = (
        "Image AUROC of each kind alone against the normal images, for the best configuration of each method, backbone "
        f"and weights by {comparison.label}: at most {SIDE_BY_SIDE}."
    )
    return Section("Kinds of defects", (lead,), [Panel("", (), [Table(columns, lines, folded)])] if lines else ())


def _weights_section(rows: Sequence[StudyRow], comparisons: Sequence[Comparison], names: Names) -> Section:
    panels = []
    for comparison in comparisons:
        if pairs := study.pair(rows, comparison.figure):
            plot = plot_of(draw.pair_plot(pairs, comparison.label), f"Pretrained over random weights: {_won(pairs)}")
            tables = (_initialisation_table(pairs, comparison), _pair_table(pairs, names))
            panels.append(Panel(comparison.label, (_won(pairs),), [Plots([plot]), *tables]))
    lead = (
        "Pairs of cells that differ in the weights alone: same method, backbone, layers, data set. Random weights: "
        "mean ± standard deviation over seeds. Built-in: the same method on a backbone that needs no weights, mean "
        "over its configurations and all data sets."
    )
    return Section("Random against pretrained weights", (lead,), panels)


def _won(pairs: Sequence[WeightsPair]) -> str:
    won = sum(p.difference > 0 for p in pairs)
    return f"Pretrained weights are better in {won} of {counted(len(pairs), 'pair')}."


def _initialisation_table(pairs: Sequence[WeightsPair], comparison: Comparison) -> Table:
    columns = (
        *IDENTITY[:2], Column("Pairs"), Column("Pretrained"), Column("Random"), Column("Difference", "in points"),
        Column("Pretrained better"), Column("Built-in"),
    )  # fmt: skip
    built_in = grouped(
        (m for m in comparison.measured if m.choice.weights == "built-in"), lambda m: m.choice.method
    )  # fmt: skip
    rows = []
    for (method, backbone), found in grouped(pairs, lambda p: (p.choice.method, p.choice.backbone)).items():
        difference = 100 * fmean(p.difference for p in found)
        others = built_in.get(method)
        spreads = [s for p in found if (s := study.deviation(p.random)) is not None]
        rows.append([
            Entry(method), Entry(backbone), number_entry(len(found), str(len(found))),
            quality_entry(fmean(fmean(p.pretrained) for p in found)),
            quality_entry(fmean(fmean(p.random) for p in found), note=f"± {fmean(spreads):.3f}" if spreads else ""),
            number_entry(difference, f"{difference:+.1f}"),
            number_entry(won := sum(p.difference > 0 for p in found), f"{won} of {len(found)}"),
            quality_entry(fmean(m.quality for m in others) if others else None),
        ])  # fmt: skip
    return Table(columns, rows)


def _pair_table(pairs: Sequence[WeightsPair], names: Names) -> Table:
    columns = (
        *IDENTITY[:2], words_column("Layers"), words_column("Data set"), Column("Pretrained"),
        Column("Random"), Column("Seeds", "pretrained, random"), Column("Difference", "in points"),
    )  # fmt: skip
    rows = [
        [
            Entry(p.choice.spec, names.settings(p.choice)), Entry(p.choice.backbone), Entry(p.choice.taps),
            Entry(names.datasets[p.dataset]), _mean_entry(p.pretrained), _mean_entry(p.random),
            Entry(f"{len(p.pretrained)}, {len(p.random)}"),
            number_entry(100 * p.difference, f"{100 * p.difference:+.1f}"),
        ]
        for p in sorted(pairs, key=lambda p: -p.difference)
    ]  # fmt: skip
    return Table(columns, rows, folded=f"All {counted(len(rows), 'pair')}")


def _mean_entry(values: Sequence[float]) -> Entry:
    spread = study.deviation(values)
    return quality_entry(fmean(values), note="" if spread is None else f"± {spread:.3f}")


def _cost_section(comparison: Comparison) -> Section:
    bundles = grouped(comparison.measured, lambda m: m.choice.backbone)
    forward = {name: fmean(m.forward_ms for m in found) for name, found in bundles.items()}
    reference = study.REFERENCE if study.REFERENCE in forward else _middle(forward)
    columns = {"forward ms": forward}
    for method, found in grouped(comparison.measured, lambda m: m.choice.method).items():
        by_backbone = grouped(found, lambda m: m.choice.backbone)
        columns[f"score ms: {method}"] = {name: fmean(m.score_ms for m in some) for name, some in by_backbone.items()}
    rows = [
        [Entry(name), *(_timed_entry(values, name, reference) for values in columns.values())]
        for name in sorted(forward, key=forward.__getitem__)
    ]
    decode = short(fmean(m.decode_ms for m in comparison.measured))
    return Section(
        "Cost of backbones and methods",
        (
            f"Milliseconds an image, means over the configurations compared, and below them the ratio to {reference}. "
            f"Decoding and resizing take {decode} ms more. Absolute times are those of the machine that ran the study, "
            "decode and forward passes each measured on eight images; ratios carry over better. The forward pass goes "
            "through the deepest layer that a cell reads.",
        ),
        [Panel("", (), [Table([words_column("Backbone"), *map(Column, columns)], rows)])],
    )


def _middle(values: Mapping[str, float]) -> str:
    return sorted(values, key=values.__getitem__)[(len(values) - 1) // 2]


def _timed_entry(values: Mapping[str, float], name: str, reference: str) -> Entry:
    value, one = values.get(name), values.get(reference)
    ratio = f"{words.times(value / one)} times" if value is not None and one else ""
    return number_entry(value, short(value), ratio)


def _cells_section(rows: Sequence[StudyRow], names: Names) -> Section:
    cells = [_cell_row(row, names) for row in rows if row["status"] == "finished"]
    columns = (
        words_column("Data set", filter=True), words_column("Method", filter=True),
        words_column("Backbone", filter=True), words_column("Weights", filter=True),
        words_column("Layers"), Column("Seed"),
        *(Column(row.short, "95 % interval" if row.has_interval else "") for row in LISTED.values()),
        Column("fit s"), Column("decode ms"), Column("forward ms"), Column("score ms"), Column("sum ms"),
        Column("peak MB"), Column("model MB"),
    )  # fmt: skip
    return Section(
        "All finished cells",
        ("A row of study.csv each, which has more columns.",),
        [Panel("", (), [Table(columns, cells, search=True)])] if cells else (),
    )


def _cell_row(row: StudyRow, names: Names) -> list[Entry]:
    choice = Configuration.of(row)
    intervals = json.loads(row["intervals"] or "{}")
    milliseconds = [row[name] for name in ("decode_ms", "forward_ms", "score_ms")]
    plain = [row["fit_seconds"], *milliseconds, sum(milliseconds)]
    return [
        Entry(names.datasets[row["dataset"]]),
        *_identity(choice, names),
        number_entry(row["seed"], str(row["seed"])),
        *(number_entry(row[name], figure(row[name], 4), words.between(intervals.get(name))) for name in LISTED),
        *(number_entry(value, short(value)) for value in plain),
        *(number_entry(row[name], megabytes(row[name])) for name in ("peak_bytes", "model_bytes")),
    ]


def _unfinished_section(rows: Sequence[StudyRow], names: Names) -> Section:
    open_ = (row for row in rows if row["status"] != "finished")
    columns = (words_column("Status"), Column("Cells"), words_column("Reason"), words_column("The first"))
    lines = [
        [
            Entry(status),
            number_entry(len(some), str(len(some))),
            Entry(reason or NOTHING),
            Entry(f"{names.datasets[some[0]['dataset']]}, {names(Configuration.of(some[0]))}, seed {some[0]['seed']}"),
        ]
        for (status, reason), some in grouped(open_, lambda row: (row["status"], row["reason"])).items()
    ]
    lead = "The same command of `blemish study` runs what waits; with --retry-failed also what failed."
    return Section("Cells without figures", (lead,), [Panel("", (), [Table(columns, lines)])] if lines else ())


def _facts_section(rows: Sequence[StudyRow]) -> Section:
    finished = [row for row in rows if row["status"] == "finished"]
    versions = grouped(finished, lambda row: row["versions"] or "{}")
    texts = [", ".join(f"{name} {value}" for name, value in json.loads(text).items()) for text in versions]
    days = sorted(row["finished_at"] for row in finished if row["finished_at"])
    facts = {
        "Devices": ", ".join(sorted({str(row["device"]) for row in finished})),
        "Threads": ", ".join(sorted({str(row["threads"]) for row in finished})),
        "Versions": "; ".join(texts),
        "Finished": f"{days[0]} to {days[-1]}" if days else NOTHING,
        "Seconds of work": short(sum(row["seconds"] or 0 for row in finished)),
    }
    columns = (words_column("What"), words_column("Value"))
    lines = [[Entry(name), Entry(value)] for name, value in facts.items()]
    return Section("Facts", (), [Panel("", (), [Table(columns, lines)])] if finished else ())
