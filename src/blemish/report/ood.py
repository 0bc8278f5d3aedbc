"""Studies of out-of-distribution detectors as one HTML file that needs nothing else: results, and what to doubt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import ArgumentError
from ..evaluation.classifiers import SUSPICIOUS, Figure, OODComparison, OODEvaluation, ScoredImages
from ..evaluation.tuning import AblationRow, SelectiveFigures, Tuning
from ..files import check_output
from ..images.groups import grouped
from . import ood_figures as draw
from .page import NOTHING, counted, percent, percent_range, plot_of, write_page
from .parts import Column, Entry, Page, Plots, Section, Table, facts_table

_Figure = tuple[str, str, str, Callable[[list[float]], float]]
"""A column of figures: attribute, label, note, and which of several is best."""

SHOWN = 5
"""Most detectors in the plots."""
TIED = 0.01
"""Share of tied scores from which a detector gets a remark."""


def write_ood_report(
    path: str | Path,
    *,
    title: str,
    evaluation: OODEvaluation | None = None,
    tunings: Sequence[Tuning] = (),
    ablation: Sequence[AblationRow] = (),
    reliability: Sequence[SelectiveFigures] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained HTML file; an existing one is replaced in one step.

    Only what is given has a section; at least one of the four studies must be. `facts` becomes a small table.
    """
    check_output(path)
    sentences = [
        *(_evaluation_words(evaluation) if evaluation else ()),
        *(sentence for tuning in tunings for sentence in _tuning_words(tuning)),
        *_ablation_words(ablation),
        *_reliability_words(reliability),
    ]
    if not sentences:
        raise ArgumentError.about("evaluation", expected="an evaluation, tuning, ablation or reliability", got="none")
    tables = {"Detectors as they ran": evaluation.facts if evaluation else {}, "Facts": facts or {}}
    sections = [
        *(_evaluation_sections(evaluation) if evaluation else ()),
        *(_tuning_section(tuning) for tuning in tunings),
        *([_ablation_section(ablation)] if ablation else []),
        *([_reliability_section(reliability)] if reliability else []),
        *(Section.of(name, (), facts_table(table)) for name, table in tables.items() if table),
    ]
    page = Page(
        title=title,
        headline=sentences[0].removesuffix("."),
        verdict=sentences[1:],
        warnings=evaluation.warnings if evaluation else (),
        left_out=evaluation.left_out if evaluation else {},
        sections=sections,
    )
    return write_page(Path(path), page)


def _table(corner: str, columns: Iterable[tuple[str, str]], rows: Sequence[Sequence[Entry]], folded: str = "") -> Table:
    """A table whose first column names the rows; the others are `(name, note)`."""
    heads = (Column(corner, is_number=False, is_head=True), *(Column(name, note) for name, note in columns))
    return Table(heads, rows, folded, style="")


# Numbers as text


_range, _share = partial(percent_range, digits=2), partial(percent, digits=2)


def _descending(value: float) -> tuple[bool, float]:
    """Sort key: largest first, NaN last."""
    return math.isnan(value), -value


def _best(values: Iterable[float], choose: Callable[[list[float]], float]) -> float:
    """NaN, which equals nothing, where there is no value."""
    found = [value for value in values if not math.isnan(value)]
    return choose(found) if found else math.nan


# Evaluation


def _by_set(evaluation: OODEvaluation) -> dict[str, list[OODComparison]]:
    """Comparisons by set of outliers, best first."""
    return {
        images.name: sorted(found, key=lambda c: _descending(c.auroc.value))
        for images in evaluation.outliers
        if (found := [c for c in evaluation.comparisons if c.outliers == images.name])
    }


def _means(evaluation: OODEvaluation) -> dict[str, float]:
    """Mean AUROC over the sets of outliers, best first; NaN where one has none."""
    by_detector = grouped(evaluation.comparisons, lambda c: c.detector)
    means = {name: float(np.mean([c.auroc.value for c in found])) for name, found in by_detector.items()}
    return dict(sorted(means.items(), key=lambda item: _descending(item[1])))


def _evaluation_words(evaluation: OODEvaluation) -> Iterator[str]:
    sets, means = _by_set(evaluation), _means(evaluation)
    if not sets:
        yield "No detector was compared."
    best, mean = next(iter(means.items()), ("", math.nan))
    if len(sets) > 1 and not math.isnan(mean):
        yield f"Best on average over {len(sets)} sets of outliers: {best}, mean AUROC {_share(mean)}."
    for name, (top, *_) in sets.items():
        interval = f"95 % interval {_range(top.auroc_interval)}"
        found = f"Best on {name}: {top.detector}, AUROC {_share(top.auroc.value)} ({interval})."
        yield f"No detector has an AUROC on {name}." if math.isnan(top.auroc.value) else found
    if evaluation.accuracy is not None:
        right = percent(evaluation.accuracy)
        yield f"The classifier {evaluation.classifier} is right about {right} of the in-distribution images."
    if len(means) > 1:
        yield f"The best of {len(means)} is chosen on these very images: expect less of it on others."


def _evaluation_sections(evaluation: OODEvaluation) -> Iterator[Section]:
    for i, (name, found) in enumerate(_by_set(evaluation).items()):
        yield _set_section(name, found, explained=i == 0)
    if any(evaluation.trivial.values()):
        yield _trivial_section(evaluation)
    shown = _shown([name for name, mean in _means(evaluation).items() if not math.isnan(mean)])
    if shown:
        yield from _curve_sections(evaluation, shown)
    if evaluation.inliers.seconds:
        yield _cost_section(evaluation)


READING = (
    "Of FPR95 less is better, of the others more. Emphasised: the best of each column and, of the AUROC, every "
    "detector whose interval (DeLong) contains the best one.",
    "Small: mean ± standard deviation over bootstraps (100 by default), which draw images anew. They say nothing about "
    "other networks, training runs or parameters.",
)


def _set_section(name: str, found: Sequence[OODComparison], *, explained: bool) -> Section:
    first = found[0]
    total = first.n_inliers + first.n_outliers
    chance = [f"guessing: {percent(n / total if total else None)}" for n in (first.n_outliers, first.n_inliers)]
    rates = ((label, note.format(*chance)) for _, label, note, _ in RATES)
    top = _best((c.auroc.value for c in found), max)
    best = {figure: _best((getattr(c, figure).value for c in found), choose) for figure, _, _, choose in RATES}
    rows = [
        [
            Entry(c.detector, f"{percent(c.tie_share)} of the scores are tied" if c.tie_share > TIED else ""),
            _auroc_cell(c, top),
            *(_cell(getattr(c, figure), value) for figure, value in best.items()),
        ]
        for c in found
    ]
    counts = f"{counted(first.n_inliers, 'in-distribution image')}, {counted(first.n_outliers, 'outlier')}."
    return Section.of(
        f"In-distribution images against {name}",
        (counts, *(READING if explained else ())),
        _table("Detector", [("AUROC", "95 % interval; guessing: 50 %"), *rates], rows),
    )


RATES: tuple[_Figure, ...] = (
    ("fpr_at_95_tpr", "FPR95, positive: outlier",
     "in-distribution images flagged where 95 % of the outliers are found", min),
    ("fpr_at_95_tpr_normal", "FPR95, positive: in-distribution",
     "outliers that pass where 95 % of the in-distribution images do", min),
    ("average_precision", "Average precision, positive: outlier", "{0}", max),
    ("average_precision_normal", "Average precision, positive: in-distribution", "{1}", max),
)  # fmt: skip
"""The figures beside the AUROC."""


def _cell(figure: Figure, best: float) -> Entry:
    return Entry(_share(figure.value), _spread(figure), is_best=figure.value == best)


def _auroc_cell(comparison: OODComparison, best: float) -> Entry:
    low, high = comparison.auroc_interval
    note = f"{_range(comparison.auroc_interval)}\n{_spread(comparison.auroc)}".rstrip()
    value = comparison.auroc.value
    return Entry(_share(value), note, is_best=value == best or low <= best <= high)


def _spread(figure: Figure) -> str:
    if math.isnan(figure.mean) or math.isnan(figure.deviation):
        return ""
    return f"{100 * figure.mean:.2f} ± {100 * figure.deviation:.2f}"


def _trivial_section(evaluation: OODEvaluation) -> Section:
    names = list(dict.fromkeys(name for aurocs in evaluation.trivial.values() for name in aurocs))
    rows = [
        [Entry(outliers), *(_trivial_cell(aurocs.get(name, math.nan)) for name in names)]
        for outliers, aurocs in evaluation.trivial.items()
    ]
    return Section.of(
        "What detectors that know nothing find",
        (
            "AUROC of single numbers, larger taken as more anomalous; far from 50 % in either direction, the sets "
            "differ in how the images were made. A detector may then find that, and not what is on them.",
        ),
        _table("Outliers", [(name, "") for name in names], rows),
    )


def _trivial_cell(value: float) -> Entry:
    suspicious = max(value, 1 - value) >= SUSPICIOUS
    return Entry(percent(value), "separates the sets" if suspicious else "")


def _shown(ranked: Sequence[str]) -> list[str]:
    """The best few, and always the gradient method, whose norms are to be seen."""
    gradients = sorted((name for name in ranked if draw.is_gradient(name)), key=lambda name: name != "gradient")[:1]
    kept = [*gradients, *(name for name in ranked if name not in gradients)][:SHOWN]
    return sorted(kept, key=ranked.index)


def _curve_sections(evaluation: OODEvaluation, shown: Sequence[str]) -> Iterator[Section]:
    named, sets = f"of {', '.join(shown)}", [outliers.name for outliers in evaluation.outliers]
    yield Section.of(
        "ROC curves",
        (
            f"The best detectors{' and the gradient method' if any(map(draw.is_gradient, shown)) else ''}. Where a "
            "curve meets the dotted line is its FPR95 (positive: outlier).",
        ),
        Plots(
            [plot_of(draw.roc_curves_plot(evaluation, name, shown), f"ROC curves {named} on {name}.") for name in sets]
        ),
    )
    against = f"in-distribution images against {', '.join(sets)}"
    yield Section.of(
        "Scores",
        ("In shares of each set. The less the two colours overlap, the better.",),
        Plots(
            [
                plot_of(
                    draw.histogram_plot(evaluation.inliers, evaluation.outliers, name),
                    f"Histogram of the scores of {name}: {against}.",
                )
                for name in shown
            ]
        ),
    )


def _cost_section(evaluation: OODEvaluation) -> Section:
    every = (evaluation.inliers, *evaluation.outliers)
    cost = {name: _milliseconds(every, name) for name in evaluation.inliers.seconds}
    forward = cost.pop("forward", math.nan)
    rows = [
        [
            Entry(name),
            Entry(f"{cost[name]:.3g}"),
            Entry(percent(cost[name] / forward, 0) if forward > 0 else NOTHING),
        ]
        for name in sorted(cost, key=cost.__getitem__)
    ]
    shared = "" if math.isnan(forward) else f", which takes {forward:.3g} ms"
    return Section.of(
        "Cost",
        (f"Wall time an image on this machine, beyond the forward pass that all detectors share{shared}.",),
        _table("Detector", [("ms an image", ""), ("of a forward pass", "")], rows),
    )


def _milliseconds(every: Sequence[ScoredImages], name: str) -> float:
    timed = [images for images in every if name in images.seconds and len(images)]
    return 1000 * sum(i.seconds[name] for i in timed) / sum(map(len, timed)) if timed else math.nan


# Tuning


KNOWS = {
    "outliers": "was tuned on outliers and has seen them: its figures are not those for unknown outliers.",
    "synthetic": "was tuned on outliers made from in-distribution images and has seen no real one.",
    "inliers": "was tuned on in-distribution images alone and has seen no outlier.",
}


def _tuning_words(tuning: Tuning) -> Iterator[str]:
    yield f"Chosen for {tuning.detector}: T = {tuning.temperature:g} and ε = {tuning.chosen_eps:g}."
    yield f"{tuning.detector} {KNOWS[tuning.objective]}"


def _objective(tuning: Tuning, value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return f"{value:.4f}" if tuning.objective == "inliers" else _share(value)


def _tuning_section(tuning: Tuning) -> Section:
    grid = tuning.grid
    values = dict(zip(grid.cells(), (value for row in tuning.values for value in row), strict=True))
    chosen = (tuning.temperature, tuning.chosen_eps)
    name = "mean log-confidence" if tuning.objective == "inliers" else "AUROC"
    best = _objective(tuning, values.get(chosen, math.nan))
    cell = f"T = {chosen[0]:g} and ε = {chosen[1]:g}"
    lead = [
        f"Chosen: {cell}, {name} {best} of {tuning.classifier} on {tuning.tuned_on}. It is the best of "
        f"{counted(len(values), 'combination')}, so a little too good. {_without(tuning, values)}",
        f"{tuning.detector} {KNOWS[tuning.objective]} {_edge(tuning)}",
    ]
    rows = [
        [
            Entry(f"T = {t:g}"),
            *(Entry(_objective(tuning, values[t, eps]), is_best=(t, eps) == chosen) for eps in grid.eps),
        ]
        for t in grid.temperatures
    ]
    words = f"Heat map of the {name} over temperature and step; chosen: {cell}."
    return Section.of(
        f"Temperature and step of {tuning.detector}",
        [sentence.strip() for sentence in lead],
        Plots([plot_of(draw.grid_plot(tuning), words)]),
        _table("", [(f"ε = {eps:g}", "") for eps in grid.eps], rows, "All values"),
    )


def _without(tuning: Tuning, values: Mapping[tuple[float, float], float]) -> str:
    plain = values.get((1.0, 0.0), math.nan)
    return "" if math.isnan(plain) else f"Without both (T = 1, ε = 0): {_objective(tuning, plain)}."


def _edge(tuning: Tuning) -> str:
    """Say where a wider grid may hold better; ε = 0 is an end that nothing lies beyond."""
    temperatures, eps = tuning.grid.temperatures, tuning.grid.eps
    is_end = tuning.temperature in (min(temperatures), max(temperatures))
    ends = [
        *(["temperature"] if len(temperatures) > 1 and is_end else []),
        *(["step"] if len(eps) > 1 and tuning.chosen_eps == max(eps) else []),
    ]
    return f"The chosen {' and '.join(ends)} lies at the end of the grid: there may be better beyond." if ends else ""


# Ablation


def _ablation_words(rows: Sequence[AblationRow]) -> Iterator[str]:
    for part, words in draw.PARTS.items():
        found = [row for row in rows if row.part == part]
        if len(found) > 1:
            first, last = found[0], found[-1]
            ends = f"from {_share(first.auroc)} ({first.variant}) to {_share(last.auroc)} ({last.variant})"
            yield f"Ablation, {words}: AUROC {ends}."
        elif found:
            yield f"Ablation, {words}: AUROC {_share(found[0].auroc)} ({found[0].variant})."


def _ablation_section(rows: Sequence[AblationRow]) -> Section:
    table = [[*map(Entry, (row.variant, row.part, _share(row.auroc), _range(row.interval)))] for row in rows]
    return Section.of(
        "What each part is worth",
        (
            "Each interval (DeLong) is that of one AUROC. All variants see the same images, so their differences are "
            "surer than intervals that overlap suggest.",
        ),
        _table("Variant", [("Part", ""), ("AUROC", ""), ("95 % interval", "")], table),
        Plots([plot_of(draw.ablation_plot(rows), "AUROC of each variant with its 95 % interval.")]),
    )


# Reliability


def _ranked(reliability: Sequence[SelectiveFigures]) -> list[SelectiveFigures]:
    return sorted(reliability, key=lambda figures: _descending(-figures.aurc))


def _reliability_words(reliability: Sequence[SelectiveFigures]) -> Iterator[str]:
    if reliability:
        best = _ranked(reliability)[0]
        yield (
            f"Best order of the predictions by trust: {best.detector}, AURC {_share(best.aurc)}; an order that says "
            f"nothing has {_share(float(best.wrong.mean()))}."
        )


ORDERS: tuple[_Figure, ...] = (
    ("aurc", "AURC", "smaller is better", min),
    ("e_aurc", "E-AURC", "beyond a perfect order", min),
    ("augrc", "AUGRC", "smaller is better", min),
    ("risk_at_80_coverage", "Risk at 80 % coverage", "wrong among the 80 % most certain", min),
    ("coverage_at_5_risk", "Coverage at 5 % risk", "larger is better", max),
)


def _reliability_section(reliability: Sequence[SelectiveFigures]) -> Section:
    ranked = _ranked(reliability)
    wrong = ranked[0].wrong
    best = {figure: _best((getattr(f, figure) for f in ranked), choose) for figure, _, _, choose in ORDERS}
    rows = [
        [Entry(f.detector), *(Entry(_share(getattr(f, name)), is_best=getattr(f, name) == best[name]) for name in best)]
        for f in ranked
    ]
    shown = _shown([figures.detector for figures in ranked])
    plotted = [figures for figures in ranked if figures.detector in shown]
    return Section.of(
        "Which predictions to trust",
        (
            f"{counted(len(wrong), 'in-distribution image')} sorted by score, {percent(float(wrong.mean()))} of the "
            "predictions wrong. An order that says nothing has that as AURC and as risk, and half of it as AUGRC.",
            "Each point of a curve: the accuracy on all images whose score is at least the threshold above it. The "
            f"band is pointwise: each {100 * plotted[0].curve.confidence:g} % interval (Clopper-Pearson) holds for its "
            "own threshold, chosen beforehand, and not for all at once. Coverage at 5 % risk is read off these very "
            "labels.",
        ),
        _table("Detector", [(label, note) for _, label, note, _ in ORDERS], rows),
        Plots([plot_of(draw.reliability_plot(plotted), f"Accuracy over the score threshold: {', '.join(shown)}.")]),
    )
