"""One evaluation as one HTML file that needs nothing else: verdict, figures, plots, and a gallery of mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..evaluation.detector import Evaluation, KindFigures
from ..files import check_output
from ..metrics.table import TABLE, Figures, Metric, Topic
from . import figures as draw
from .page import NOTHING, counted, data_uri, percent, percent_range, plot_of, write_page
from .parts import Card, Column, Entry, Gallery, Legend, Number, Page, Plots, Section, Table, TextList, facts_table

MISSES, FALSE_ALARMS, DETECTIONS = 12, 6, 24
"""Most images that each part of the gallery shows."""


def write_report(
    evaluation: Evaluation, path: str | Path, *, title: str, facts: Mapping[str, str] | None = None
) -> Path:
    """Write one self-contained HTML file; an existing one is replaced in one step.

    `facts` becomes a small table: method, backbone, images, preprocessing, seed, versions. Test images are read again
    for the gallery; one that has gone meanwhile leaves a placeholder.
    """
    check_output(path)
    figures, scale = evaluation.figures, draw.scale_of(evaluation)
    page = Page(
        title=title,
        headline=_headline(evaluation),
        interval=percent_range(evaluation.intervals.get("image_auroc")),
        verdict=_verdict(evaluation),
        warnings=_warnings(evaluation),
        numbers=_numbers(evaluation),
        sections=[
            _figures_section(evaluation),
            *([Section.of("Facts", (), facts_table(facts))] if facts else ()),
            *([_scores_section(evaluation)] if evaluation.records else ()),
            *([_kinds_section(evaluation)] if evaluation.kinds else ()),
            Section.of("Gallery", [_gallery_lead(figures, scale)], *_gallery(evaluation, scale)),
            *([_skipped_section(evaluation)] if evaluation.skipped else ()),
        ],
    )
    return write_page(Path(path), page)


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
    if not figures.has_verdicts:
        return ["The detector was not calibrated: it gives scores, but has no threshold and gives no verdicts."]
    parts = [
        f"{_flagged(evaluation, anomalous=anomalous)} of {counted(total, f'{word} image')}"
        for anomalous, word, total in ((True, "anomalous", figures.n_anomalous), (False, "normal", figures.n_normal))
        if total
    ]
    if not parts:
        return ["No test image could be read."]
    at = "With p-values" if figures.threshold is None else "At the threshold"
    sentence = f"{at} fixed from normal images it flags {' and '.join(parts)}."
    rates = (evaluation.realised, evaluation.realised_regions)
    said = [str(rate) for rate in rates if rate is not None and not rate.speaks_against_premise]  # else it is a warning
    missed = [] if evaluation.missed is None else [str(evaluation.missed)]
    together = [line for one in (evaluation.parts, evaluation.batch) if one is not None for line in one.lines()]
    return [sentence, *missed, *_extremes(evaluation), *_found_regions(evaluation), *said, *together]


def _found_regions(evaluation: Evaluation) -> list[str]:
    """What the regions hit, in a sentence."""
    hit = evaluation.figures.defects_hit
    if hit is None:
        return []
    return [f"Its regions, outlined on the photographs, touch {percent(hit)} of the marked defects."]


def _warnings(evaluation: Evaluation) -> list[str]:
    rates = (evaluation.realised, evaluation.realised_regions)
    broken = [str(rate) for rate in rates if rate is not None and rate.speaks_against_premise]
    if not evaluation.overlap:
        return broken
    seen = counted(len(evaluation.overlap), "test image")
    return [
        *broken,
        f"The model had seen {seen} of {len(evaluation.records)} when it was fitted. No figure here is a test.",
    ]


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


def _numbers(evaluation: Evaluation) -> list[Number]:
    figures = evaluation.figures
    found = None if figures.misses is None else 1 - figures.misses
    of = {wanted: f"{_flagged(evaluation, anomalous=wanted)} of" for wanted in (True, False)}
    rows = (
        ("Found", found, f"{of[True]} {counted(figures.n_anomalous, 'anomalous image')} flagged"),
        ("False alarms", figures.false_alarms, f"{of[False]} {counted(figures.n_normal, 'normal image')} flagged"),
        (TABLE["f1"].short, figures.f1, "balance of found anomalies and right alarms"),
        (TABLE["au_pro_30"].short, figures.au_pro_30, "how well the heat maps outline the defects"),
    )
    return [Number(label, percent(value), note) for label, value, note in rows if value is not None]


# Tables and plots


def _figures_section(evaluation: Evaluation) -> Section:
    """Rows in groups, each with its explanation or the reason why it is missing."""
    where = "original pixels" if evaluation.pixels == "original" else "pixels of the network's input, as in the papers"
    headings: dict[Topic, str] = {
        "ranking": "Ranking of images, no threshold needed",
        "verdicts": "Verdicts, fixed from normal images",
        "localisation": f"Localisation, on {where}",
        "oracle": "Not a result: an upper bound",
    }
    names = sorted(TABLE, key=lambda name: TABLE[name].place)
    rows = []
    for topic, heading in headings.items():
        rows.append([Entry(heading)])
        rows += [_figure_row(evaluation, name, TABLE[name]) for name in names if TABLE[name].topic == topic]
    columns = [
        Column("Figure", is_number=False, is_head=True),
        Column("Value", style="value-cell"),
        *([Column("95 % interval", style="interval")] if evaluation.intervals else ()),
        Column("What it says", is_number=False, style="why"),
    ]
    lead = (
        "The intervals are 95 % intervals, exact for shares of images, else by the bootstrap: how far a figure would "
        "move with other images of the same sort."
        if evaluation.intervals
        else "Without intervals: these were not asked for."
    )
    return Section.of("Figures", [lead], Table(columns, rows, style="figures"))


def _figure_row(evaluation: Evaluation, name: str, row: Metric) -> list[Entry]:
    figures = evaluation.figures
    images = figures.n_normal + figures.n_anomalous
    counts = {"normal": figures.n_normal, "anomalous": figures.n_anomalous}
    chance = {word: percent(n / images if images else None) for word, n in counts.items()}
    explanation = row.explanation.format(**chance) + ("; smaller is better." if row.better == "smaller" else ".")
    value: float | None = getattr(figures, name)
    if value is None:
        explanation += f" Not computed: {_reason(evaluation, row)}"
    style = "oracle" if row.topic == "oracle" else ""
    interval = Entry(percent_range(evaluation.intervals.get(name)), style=style)
    shown = [Entry(percent(value), style=style), *([interval] if evaluation.intervals else ())]
    return [Entry(row.label), *shown, Entry(explanation)]


def _reason(evaluation: Evaluation, row: Metric) -> str:
    of_regions = _reason_of_regions(evaluation, row)
    if of_regions:
        return of_regions
    if "masks" in row.needs:
        if evaluation.maps is None:
            return "the method judges whole images and makes no maps."
        return "there are no ground-truth masks."
    if "verdicts" in row.needs and not evaluation.figures.has_verdicts:
        return "the detector was not calibrated, so there are no verdicts."
    return _one_class(evaluation.figures)


def _reason_of_regions(evaluation: Evaluation, row: Metric) -> str:
    """Why a figure of regions is open; empty where they are not to blame."""
    if "regions" not in row.needs and "marked regions" not in row.needs:
        return ""
    if evaluation.realised_regions is None and not any(r.decision.regions is not None for r in evaluation.records):
        return "the detector reports no regions: it has no maps, no calibration or full, or is older than regions."
    if "marked regions" in row.needs and not any(record.sample.mask for record in evaluation.records):
        return "there are no ground-truth masks."
    if "marked regions" in row.needs and all(record.decision.threshold is None for record in evaluation.records):
        return "with calibration cross a region is no level of one map, which is what is counted here."
    return ""


def _one_class(figures: Figures) -> str:
    missing = [word for word, n in (("normal", figures.n_normal), ("anomalous", figures.n_anomalous)) if not n]
    return f"there are no {' and no '.join(missing)} test images." if missing else "there is no value."


def _scores_section(evaluation: Evaluation) -> Section:
    flagged = "" if evaluation.figures.threshold is None else "; what lies right of the line is flagged"
    drawn = ((draw.score_plot(evaluation), _score_alt(evaluation)), (draw.roc_plot(evaluation), _roc_alt(evaluation)))
    return Section.of(
        "Scores",
        [f"The further apart the two colours, the better. Each dot is one image{flagged}."],
        Plots([plot_of(png, words) for png, words in drawn if png is not None], style=""),
    )


def _kinds_section(evaluation: Evaluation) -> Section:
    anomalous = {kind.kind for kind in _anomalous_kinds(evaluation)}
    columns = (
        Column("Kind", is_number=False, is_head=True), Column("Images"), Column("AUROC"), Column("Flagged"),
        Column("", is_number=False, style="share"),
    )  # fmt: skip
    rows = [
        [
            Entry(kind.kind if kind.kind in anomalous else f"{kind.kind} (normal)"),
            Entry(str(kind.images)),
            Entry(percent(kind.image_auroc)),
            Entry(NOTHING if kind.flagged is None else _flagged_of(kind)),
            Entry(
                "",
                bar=None if kind.flagged is None else 100 * kind.flagged,
                style="" if kind.kind in anomalous else "normal",
            ),
        ]
        for kind in evaluation.kinds
    ]
    lead = "Each kind of anomaly against the normal test images."
    return Section.of("Kinds", [lead], Table(columns, rows, style="kinds"))


def _skipped_section(evaluation: Evaluation) -> Section:
    count = len(evaluation.skipped)
    listing = TextList(f"{count} skipped", evaluation.skipped, is_open=count <= 10)
    return Section.of("Skipped files", ["These could not be used and count in no figure."], listing)


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


def _gallery_lead(figures: Figures, scale: draw.Scale | None) -> str:
    if scale is None:
        return "There are no heat maps: the method judges whole images."
    text = (
        "Left the image, right what the detector found unusual in it. All heat maps share one colour scale, so colours "
        "can be compared between images."
    )
    if figures.threshold is None or scale.threshold is not None:
        return text
    return (
        f"{text} The image score is not the largest value of the map here, so the threshold has no place on the scale."
    )


def _legend(evaluation: Evaluation, scale: draw.Scale | None) -> Legend:
    marks, keys = [], []
    if any(record.decision.regions for record in evaluation.records):
        keys.append(("found", "region found, with a p-value of at most the false-alarm rate"))
    if any(record.sample.mask is not None for record in evaluation.records):
        keys.append(("outline", "ground truth: the defect as marked in the data set"))
    if evaluation.inside is not None:
        keys.append(("region", "region of interest"))
    if scale is not None:
        marks = [(scale.low, "usual"), (scale.threshold, "threshold"), (scale.high, "and above")]
        if scale.threshold is not None:
            keys.append(("above", "above the threshold: what made the image anomalous"))
        blind = [
            *(["cropped away"] if evaluation.preprocess.crop is not None else ()),
            *(["outside the region of interest"] if evaluation.inside is not None else ()),
        ]
        if blind:
            keys.append(("blind", f"{' or '.join(blind)}: the detector did not look here"))
    strip = None if scale is None else data_uri("webp", draw.scale_strip())
    return Legend(strip, [(f"{number:.4g}", name) for number, name in marks if number is not None], keys)


def _gallery(evaluation: Evaluation, scale: draw.Scale | None) -> Iterator[Legend | Gallery]:
    legend = _legend(evaluation, scale)
    if legend.strip or legend.keys:
        yield legend
    figures = evaluation.figures
    decided = figures.has_verdicts
    missed = figures.n_anomalous - _flagged(evaluation, anomalous=True)
    alarms = _flagged(evaluation, anomalous=False)
    plans = (
        (
            "Worst misses",
            "Anomalous images, lowest score first."
            + (f" Not flagged: {missed} of {figures.n_anomalous}." if decided else ""),
            _ordered(evaluation, anomalous=True)[:MISSES],
        ),
        (
            "Worst false alarms",
            "Normal images, highest score first." + (f" Flagged: {alarms} of {figures.n_normal}." if decided else ""),
            _ordered(evaluation, anomalous=False)[::-1][:FALSE_ALARMS],
        ),
        (
            "Typical detections" if decided else "Typical anomalous images",
            ("From the middle of what is flagged of each kind." if decided else "From the middle of each kind.")
            + (" Whether for the right reason, the lines tell." if decided and scale is not None else ""),
            _typical(evaluation),
        ),
    )
    for heading, lead, chosen in plans:
        if chosen:
            yield Gallery(heading, lead, [_card(evaluation, i, scale) for i in chosen])


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


_BADGES: dict[tuple[bool | None, bool], str] = {
    (True, True): "found",
    (False, True): "missed",
    (True, False): "false alarm",
    (False, False): "passed",
}
"""By whether an image is flagged, and is anomalous."""


def _card(evaluation: Evaluation, index: int, scale: draw.Scale | None) -> Card:
    record = evaluation.records[index]
    decision, anomalous = record.decision, record.sample.anomalous
    tile = draw.tile(evaluation, index, scale=scale)
    p_value = "" if decision.p_value is None else f" · p {decision.p_value:.2g}"
    regions = f" · {counted(len(decision.regions), 'region')}" if decision.regions else ""
    outlined = ", with the true defect outlined" if anomalous and record.sample.mask is not None else ""
    return Card(
        name=record.sample.path.name,
        kind=record.sample.kind,
        badge=_BADGES.get((decision.is_anomalous, anomalous), ""),
        is_wrong=decision.is_anomalous is not None and decision.is_anomalous != anomalous,
        numbers=f"score {decision.score:.4g}{p_value}{regions}",
        photo=None if tile.photo is None else data_uri("webp", draw.webp(tile.photo)),
        heat=None if tile.heat is None else data_uri("webp", draw.webp(tile.heat)),
        heat_words=("Heat map" if scale is not None else "Image") + outlined,
        is_wide=tile.photo is not None and tile.photo.width > 1.5 * tile.photo.height,
        remark=tile.remark,
    )
