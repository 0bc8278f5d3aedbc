"""One evaluation as one HTML file that needs nothing else: verdict, figures, plots, and a gallery of mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluation.detector import Evaluation, KindFigures
from ..metrics.table import TABLE, Figures, Metric, Topic
from . import figures as draw
from .page import EN_DASH, NOTHING, counted, data_uri, percent, write_page

MISSES, FALSE_ALARMS, DETECTIONS = 12, 6, 24
"""Most images that each part of the gallery shows."""


def write_report(
    evaluation: Evaluation, path: str | Path, *, title: str, facts: Mapping[str, str] | None = None
) -> Path:
    """Write one self-contained HTML file; an existing one is replaced in one step.

    `facts` becomes a small table: method, backbone, images, preprocessing, seed, versions. Test images are read again
    for the gallery; one that has gone meanwhile leaves a placeholder.
    """
    return write_page(Path(path), "page.html.jinja", _content(evaluation, title, dict(facts or {})))


@dataclass(frozen=True)
class _Row:
    """One figure of the table, in words and ready to print."""

    label: str
    value: str
    interval: str
    explanation: str
    is_oracle: bool = False


@dataclass(frozen=True)
class _Number:
    """One of the large numbers below the verdict."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class _Kind:
    name: str
    images: int
    is_anomalous: bool
    auroc: str
    flagged: str
    percent: float | None


@dataclass(frozen=True)
class _Card:
    """One image of the gallery."""

    name: str
    kind: str
    badge: str
    is_wrong: bool
    numbers: str
    photo: str | None
    heat: str | None
    heat_alt: str
    is_wide: bool
    remark: str


@dataclass(frozen=True)
class _Section:
    heading: str
    lead: str
    cards: list[_Card] = field(default_factory=list)


def _content(evaluation: Evaluation, title: str, facts: dict[str, str]) -> dict[str, object]:
    scale = draw.scale_of(evaluation)
    return {
        "title": title,
        "headline": _headline(evaluation),
        "headline_interval": _range(evaluation.intervals.get("image_auroc")),
        "verdict": _verdict(evaluation),
        "numbers": _numbers(evaluation),
        "groups": _groups(evaluation),
        "has_intervals": bool(evaluation.intervals),
        "facts": facts,
        "score_plot": data_uri("png", draw.score_plot(evaluation)),
        "score_alt": _score_alt(evaluation),
        "roc_plot": data_uri("png", draw.roc_plot(evaluation)),
        "roc_alt": _roc_alt(evaluation),
        "kinds": _kinds(evaluation),
        "is_calibrated": evaluation.figures.threshold is not None,
        "has_masks": any(record.sample.mask is not None for record in evaluation.records),
        "scale": scale,
        "scale_strip": None if scale is None else data_uri("webp", draw.scale_strip()),
        "is_cropped": evaluation.preprocess.crop is not None,
        "sections": _gallery(evaluation, scale),
        "skipped": evaluation.skipped,
    }


# Numbers as text


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} {EN_DASH} {100 * interval[1]:.1f} %"


def _flagged(evaluation: Evaluation, *, anomalous: bool) -> int:
    return sum(r.decision.is_anomalous is True for r in evaluation.records if r.sample.anomalous == anomalous)


# Verdict


def _headline(evaluation: Evaluation) -> str:
    figures = evaluation.figures
    if figures.image_auroc is None:
        return f"No image AUROC: {_one_class(figures)}"
    return f"Image AUROC {percent(figures.image_auroc)}"


def _verdict(evaluation: Evaluation) -> list[str]:
    """What the detector does at its threshold, in sentences."""
    figures = evaluation.figures
    if figures.threshold is None:
        return ["The detector was not calibrated: it gives scores, but has no threshold and gives no verdicts."]
    parts = [
        f"{_flagged(evaluation, anomalous=anomalous)} of {counted(total, f'{word} image')}"
        for anomalous, word, total in ((True, "anomalous", figures.n_anomalous), (False, "normal", figures.n_normal))
        if total
    ]
    if not parts:
        return ["No test image could be read."]
    sentence = f"At the threshold fixed from held-out normal images it flags {' and '.join(parts)}."
    return [sentence, *_extremes(evaluation)]


def _extremes(evaluation: Evaluation) -> list[str]:
    """Name the kinds found most and least often, where there is a difference."""
    kinds = [kind for kind in _anomalous_kinds(evaluation) if kind.flagged is not None]
    kinds.sort(key=lambda kind: -(kind.flagged or 0.0))
    if len(kinds) < 2 or kinds[0].flagged == kinds[-1].flagged:
        return []
    best, worst = (f"{kind.kind} ({_flagged_of(kind)})" for kind in (kinds[0], kinds[-1]))
    return [f"It finds {best} most often, and {worst} least often."]


def _flagged_of(kind: KindFigures) -> str:
    return f"{round((kind.flagged or 0.0) * kind.images)} of {kind.images}"


def _anomalous_kinds(evaluation: Evaluation) -> list[KindFigures]:
    names = {record.sample.kind for record in evaluation.records if record.sample.anomalous}
    return [kind for kind in evaluation.kinds if kind.kind in names]


def _numbers(evaluation: Evaluation) -> list[_Number]:
    figures = evaluation.figures
    found = None if figures.misses is None else 1 - figures.misses
    of = {wanted: f"{_flagged(evaluation, anomalous=wanted)} of" for wanted in (True, False)}
    rows = (
        ("Found", found, f"{of[True]} {counted(figures.n_anomalous, 'anomalous image')} above the threshold"),
        ("False alarms", figures.false_alarms, f"{of[False]} {counted(figures.n_normal, 'normal image')} above it"),
        (TABLE["f1"].short, figures.f1, "balance of found anomalies and right alarms"),
        (TABLE["au_pro_30"].short, figures.au_pro_30, "how well the heat maps outline the defects"),
    )
    return [_Number(label, percent(value), note) for label, value, note in rows if value is not None]


# Tables


def _groups(evaluation: Evaluation) -> list[tuple[str, list[_Row]]]:
    """The figure table: groups of rows, each with its explanation or the reason why it is missing."""
    where = "original pixels" if evaluation.pixels == "original" else "pixels of the network's input, as in the papers"
    headings: dict[Topic, str] = {
        "ranking": "Ranking of images, no threshold needed",
        "verdicts": "Verdicts at the threshold fixed from held-out normal images",
        "localisation": f"Localisation, on {where}",
        "oracle": "Not a result: an upper bound",
    }
    return [
        (
            heading,
            [_row(evaluation, name, row) for name, row in sorted(TABLE.items(), key=_place) if row.topic == topic],
        )
        for topic, heading in headings.items()
    ]


def _place(item: tuple[str, Metric]) -> int:
    return item[1].place


def _row(evaluation: Evaluation, name: str, row: Metric) -> _Row:
    figures = evaluation.figures
    images = figures.n_normal + figures.n_anomalous
    counts = {"normal": figures.n_normal, "anomalous": figures.n_anomalous}
    chance = {word: percent(n / images if images else None) for word, n in counts.items()}
    explanation = row.explanation.format(**chance) + ("; smaller is better." if row.better == "smaller" else ".")
    value: float | None = getattr(figures, name)
    if value is None:
        explanation += f" Not computed: {_reason(evaluation, row)}"
    interval = _range(evaluation.intervals.get(name))
    return _Row(row.label, percent(value), interval, explanation, row.topic == "oracle")


def _reason(evaluation: Evaluation, row: Metric) -> str:
    if "masks" in row.needs:
        if evaluation.maps is None:
            return "the method judges whole images and makes no maps."
        return "there are no ground-truth masks."
    if "threshold" in row.needs and evaluation.figures.threshold is None:
        return "the detector was not calibrated, so there is no threshold."
    return _one_class(evaluation.figures)


def _one_class(figures: Figures) -> str:
    missing = [word for word, n in (("normal", figures.n_normal), ("anomalous", figures.n_anomalous)) if not n]
    return f"there are no {' and no '.join(missing)} test images." if missing else "there is no value."


def _kinds(evaluation: Evaluation) -> list[_Kind]:
    anomalous = {kind.kind for kind in _anomalous_kinds(evaluation)}
    return [
        _Kind(
            kind.kind, kind.images, kind.kind in anomalous, percent(kind.image_auroc),
            NOTHING if kind.flagged is None else _flagged_of(kind),
            None if kind.flagged is None else 100 * kind.flagged,
        )
        for kind in evaluation.kinds
    ]  # fmt: skip


def _score_alt(evaluation: Evaluation) -> str:
    threshold = evaluation.figures.threshold
    line = "" if threshold is None else f", with the threshold at {threshold:.4g}"
    return f"Histogram of the image scores of normal and anomalous images, and one dot an image by kind{line}."


def _roc_alt(evaluation: Evaluation) -> str:
    figures = evaluation.figures
    point = ""
    if figures.false_alarms is not None and figures.misses is not None:
        found, alarms = percent(1 - figures.misses), percent(figures.false_alarms)
        point = f" At the threshold: {found} found, {alarms} false alarms."
    return f"ROC curve, area {percent(figures.image_auroc)}.{point}"


# Gallery


def _gallery(evaluation: Evaluation, scale: draw.Scale | None) -> list[_Section]:
    figures = evaluation.figures
    decided = figures.threshold is not None
    missed = figures.n_anomalous - _flagged(evaluation, anomalous=True)
    alarms = _flagged(evaluation, anomalous=False)
    plans = (
        (
            "Worst misses",
            "Anomalous images, lowest score first."
            + (f" Not above the threshold: {missed} of {figures.n_anomalous}." if decided else ""),
            _ordered(evaluation, anomalous=True)[:MISSES],
        ),
        (
            "Worst false alarms",
            "Normal images, highest score first."
            + (f" Above the threshold: {alarms} of {figures.n_normal}." if decided else ""),
            _ordered(evaluation, anomalous=False)[::-1][:FALSE_ALARMS],
        ),
        (
            "Typical detections" if decided else "Typical anomalous images",
            ("From the middle of what is flagged of each kind." if decided else "From the middle of each kind.")
            + (" Whether for the right reason, the lines tell." if decided and scale is not None else ""),
            _typical(evaluation),
        ),
    )
    return [_Section(head, lead, [_card(evaluation, i, scale) for i in chosen]) for head, lead, chosen in plans]


def _ordered(evaluation: Evaluation, *, anomalous: bool) -> list[int]:
    """Records of one class by score, ascending."""
    chosen = [i for i, record in enumerate(evaluation.records) if record.sample.anomalous == anomalous]
    return sorted(chosen, key=lambda i: evaluation.records[i].decision.score)


def _typical(evaluation: Evaluation) -> list[int]:
    """Two records a kind, or one where kinds are many, from the middle of the flagged ones."""
    kinds = [kind.kind for kind in _anomalous_kinds(evaluation)]
    records = evaluation.records
    found = [i for i in _ordered(evaluation, anomalous=True) if records[i].decision.is_anomalous is not False]
    each = 2 if 2 * len(kinds) <= DETECTIONS else 1
    groups = ([i for i in found if records[i].sample.kind == kind] for kind in kinds)
    return [i for group in groups for i in _middle(group, each)][:DETECTIONS]


def _middle(items: Sequence[int], count: int) -> Iterable[int]:
    if len(items) <= count:
        return items
    return (items[(k + 1) * len(items) // (count + 1)] for k in range(count))


def _card(evaluation: Evaluation, index: int, scale: draw.Scale | None) -> _Card:
    record = evaluation.records[index]
    decision, anomalous = record.decision, record.sample.anomalous
    tile = draw.tile(evaluation, index, scale=scale)
    p_value = "" if decision.p_value is None else f" · p {decision.p_value:.2g}"
    outlined = ", with the true defect outlined" if anomalous and record.sample.mask is not None else ""
    return _Card(
        name=record.sample.path.name,
        kind=record.sample.kind,
        badge=_badge(decision.is_anomalous, anomalous),
        is_wrong=decision.is_anomalous is not None and decision.is_anomalous != anomalous,
        numbers=f"score {decision.score:.4g}{p_value}",
        photo=None if tile.photo is None else data_uri("webp", draw.webp(tile.photo)),
        heat=None if tile.heat is None else data_uri("webp", draw.webp(tile.heat)),
        heat_alt=("Heat map" if scale is not None else "Image") + outlined,
        is_wide=tile.photo is not None and tile.photo.width > 1.5 * tile.photo.height,
        remark=tile.remark,
    )


def _badge(flagged: bool | None, anomalous: bool) -> str:
    if flagged is None:
        return ""
    return {(True, True): "found", (False, True): "missed", (True, False): "false alarm", (False, False): "passed"}[
        flagged, anomalous
    ]
