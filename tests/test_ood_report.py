"""The report on out-of-distribution studies: right figures, plain warnings, nothing unescaped, plots of the data."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from blemish.errors import ArgumentError, OutputError
from blemish.evaluation.classifiers import Figure, OODComparison, OODEvaluation, ScoredImages
from blemish.evaluation.tuning import AblationRow, Grid, Tuning, reliability_ood
from blemish.report import ood as report
from blemish.report import ood_figures as draw
from blemish.report.ood import write_ood_report

DASH = "\N{EN DASH}"
EVIL = r"<b>$\frac$\udcff"  # markup, broken mathematics, and a byte that is no UTF-8
DETECTORS = ("msp", "energy", "gradient", "vim")


class Page:
    """What a reader meets: the text, and the rows of each section's table as lists of texts."""

    def __init__(self, path):
        self.html = path.read_text(encoding="utf-8")
        body = self.html[self.html.index("<body>") :]
        head, *sections = re.split(r"<section ", body)
        self.top, self.text = _text(head), _text(body)
        self.sections = {_text(re.search(r"<h2.*?</h2>", s, re.S)[0]): s for s in sections}
        self.images = re.findall(r'<img src="(.*?)" alt="(.*?)" loading', body)

    def words(self, heading):
        return _text(re.sub(r"^.*?>", "", self.sections[heading], count=1))

    def rows(self, heading):
        """Each row by the words of its first cell."""
        cells = [
            [_text(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
            for row in re.findall(r"<tr>.*?</tr>", self.sections[heading], re.S)
        ]
        return {first: rest for first, *rest in cells}

    def best(self, heading):
        return [_text(found) for found in re.findall(r'<strong class="best">.*?</strong>', self.sections[heading])]


def _text(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", markup))).strip()


def scored(name, size, shift, *, labels=False, seconds=0.0):
    rng = np.random.default_rng(size)
    raw = {detector: rng.normal(shift / (i + 1), 1, size) for i, detector in enumerate(DETECTORS)}
    raw["gradient"] = np.exp(3 * raw["gradient"])
    predicted = np.arange(size) % 3
    return ScoredImages(
        name, tuple(f"{name}{i}" for i in range(size)), raw, {}, predicted,
        np.where(rng.normal(raw["msp"]) > 1, predicted + 1, predicted) if labels else None, frozenset(),
        {"forward": 0.01 * size, **dict.fromkeys(DETECTORS, 0.002 * size + seconds)},
    )  # fmt: skip


def compared(outliers, detector, auroc, **changes):
    """Every other figure follows from the AUROC, and no two are equal."""
    figures = {
        "fpr_at_95_tpr": 1 - auroc, "fpr_at_95_tpr_normal": 1.1 * (1 - auroc),
        "average_precision": auroc - 0.05, "average_precision_normal": auroc - 0.02,
    }  # fmt: skip
    known = OODComparison(
        outliers.name, detector, Figure(auroc, auroc - 0.001, 0.0123),
        auroc_interval=(auroc - 0.02, auroc + 0.02), tie_share=0.0, n_inliers=60, n_outliers=len(outliers),
        **{name: Figure(value, value - 0.002, 0.0345) for name, value in figures.items()},
    )  # fmt: skip
    return replace(known, **changes)


@pytest.fixture(scope="module")
def inliers():
    return scored("test", 60, 0.0, labels=True)


@pytest.fixture(scope="module")
def evaluation(inliers):
    textures = scored("textures", 20, 2.0, seconds=0.08)
    aurocs = {"msp": 0.9, "energy": 0.915, "gradient": 0.7, "vim": 0.8}
    rows = [compared(textures, name, value) for name, value in aurocs.items()]
    rows[3] = replace(rows[3], tie_share=0.25, fpr_at_95_tpr=Figure(0.01, 0.011, 0.002))
    return OODEvaluation(
        "resnet", inliers, (textures,), tuple(rows), {"textures": {"brightness": 0.04, "contrast": 0.6}},
        ("textures: brightness alone separates it.",), {"react": "needs features"}, 0.81234, {"msp": "MSP()"},
    )  # fmt: skip


GRID = Grid((1.0, 5.0, 20.0), (0.0, 0.001, 0.002))
TUNING = Tuning(
    "resnet", "Gradient", "outliers", "test (50) against textures (40)", 50, 40, GRID,
    [[0.71, 0.72, 0.73], [0.74, 0.8765, 0.75], [0.76, 0.77, 0.78]], 5.0, 0.001, [],
)  # fmt: skip
ROWS = (
    AblationRow("preprocessing", "none", 0.811, (0.8, 0.82)),
    AblationRow("preprocessing", "both", 0.933, (0.92, 0.94)),
    AblationRow("blocks", "conv1", 0.655, (0.6, 0.71)),
    AblationRow("blocks", "conv1 to fc", 0.933, (0.92, 0.94)),
)


@pytest.fixture(scope="module")
def reliability(inliers):
    return reliability_ood(inliers, bin_size=10)


@pytest.fixture(scope="module")
def written(evaluation, reliability, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "ood.html"
    given = {"tunings": [TUNING], "ablation": ROWS, "reliability": reliability, "facts": {"Seed": "<7>"}}
    assert write_ood_report(str(path), title="<i>t", evaluation=evaluation, **given) == path
    return path


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


@pytest.fixture
def write_drawn(tmp_path, monkeypatch):
    """Write and read a page with few plots."""
    monkeypatch.setattr(report, "SHOWN", 1)
    return lambda **given: Page(write_ood_report(tmp_path / "r.html", title="t", **given))


@pytest.fixture
def write(write_drawn, monkeypatch):
    """The same where the words are what counts: each plot is empty."""
    for name in ("ablation_plot", "grid_plot", "histogram_plot", "reliability_plot", "roc_curves_plot"):
        monkeypatch.setattr(draw, name, lambda *_data: b"")
    return write_drawn


def test_is_one_file_that_fetches_nothing(written, page):
    assert [p.name for p in written.parent.iterdir()] == ["ood.html"]
    assert not re.search(r"https?://|url\(|@import|<script|<link|srcset|href", page.html)
    assert len(page.images) == page.html.count("<img") == 1 + 4 + 1 + 1 + 1
    for source, words in page.images:
        assert len(words) > 20
        decoded(base64.b64decode(source.removeprefix("data:image/png;base64,")))


def test_sections_are_in_order(page):
    assert list(page.sections) == [
        "In-distribution images against textures", "What detectors that know nothing find", "ROC curves", "Scores",
        "Cost", "Temperature and step of Gradient", "What each part is worth", "Which predictions to trust",
        "Detectors as they ran", "Facts",
    ]  # fmt: skip


def test_top_names_the_best_what_to_doubt_and_what_is_missing(page):
    assert f"Best on textures: energy, AUROC 91.50 % (95 % interval 89.50 {DASH} 93.50 %)" in page.top
    assert "Read this before any figure textures: brightness alone separates it." in page.top
    assert page.top.index("Read this") < page.top.index("is right about 81.2 % of the in-distribution images")
    assert "react: needs features" in page.top
    assert "Gradient was tuned on outliers and has seen them" in page.top


def test_figures_are_those_of_the_evaluation_best_first(evaluation, page):
    rows = page.rows("In-distribution images against textures")
    found = sorted(evaluation.comparisons, key=lambda c: -c.auroc.value)
    names = ["energy", "msp", "vim 25.0 % of the scores are tied", "gradient"]
    assert list(rows)[1:] == names
    for name, c in zip(names, found, strict=True):
        low, high = c.auroc_interval
        interval = f" {100 * low:.2f} {DASH} {100 * high:.2f} %"
        columns = (c.auroc, c.fpr_at_95_tpr, c.fpr_at_95_tpr_normal, c.average_precision, c.average_precision_normal)
        for cell, figure, extra in zip(rows[name], columns, (interval, "", "", "", ""), strict=True):
            spread = f"{100 * figure.mean:.2f} ± {100 * figure.deviation:.2f}"
            assert cell == f"{100 * figure.value:.2f} %{extra} {spread}"


def test_table_says_how_to_read_it(page):
    head = page.rows("In-distribution images against textures")["Detector"]
    assert head[3:] == [
        "Average precision, positive: outlier guessing: 25.0 %",
        "Average precision, positive: in-distribution guessing: 75.0 %",
    ]
    words = page.words("In-distribution images against textures")
    assert "60 in-distribution images, 20 outliers." in words
    assert "They say nothing about other networks, training runs or parameters." in words


def test_emphasised_are_the_best_of_each_column_and_what_may_equal_the_best_auroc(page):
    # msp's interval reaches 0.92 and so the best AUROC of 0.915; vim has the smallest first FPR95.
    assert page.best("In-distribution images against textures") == [
        "91.50 %", "9.35 %", "86.50 %", "89.50 %", "90.00 %", "1.00 %",
    ]  # fmt: skip


def test_trivial_detectors_are_marked_in_either_direction(page):
    rows = page.rows("What detectors that know nothing find")
    assert rows["Outliers"] == ["brightness", "contrast"]
    assert rows["textures"] == ["4.0 % separates the sets", "60.0 %"]


def test_cost_is_the_time_over_all_images(page):
    assert page.rows("Cost")["msp"] == ["3", "30 %"]  # (0.002 * 80 + 0.08) s over 80 images; 10 ms a forward pass
    assert "which takes 10 ms" in page.words("Cost")


def test_tuning_tells_the_choice_its_value_and_what_it_has_seen(page):
    words = page.words("Temperature and step of Gradient")
    assert "T = 5 and ε = 0.001, AUROC 87.65 % of resnet on test (50) against textures (40)" in words
    assert "the best of 9 combinations" in words
    assert "Without both (T = 1, ε = 0): 71.00 %." in words
    assert "at the end of the grid" not in words
    assert page.best("Temperature and step of Gradient") == ["87.65 %"]
    assert page.rows("Temperature and step of Gradient")["T = 5"] == ["74.00 %", "87.65 %", "75.00 %"]


@pytest.mark.parametrize(
    ("objective", "words"),
    [("synthetic", "has seen no real one"), ("inliers", "has seen no outlier"), ("outliers", "has seen them")],
)
def test_each_objective_says_what_it_knows(write, objective, words):
    changes = {"objective": objective, "temperature": 20.0, "chosen_eps": 0.002}
    values = [[-0.71, -0.72, -0.73], [-0.74, float("nan"), -0.75], [-0.76, -0.77, -0.05]]
    page = write(tunings=[replace(TUNING, values=values, **changes)])
    assert page.top.count("has seen") == 1
    assert words in page.top
    assert "The chosen temperature and step lies at the end of the grid" in page.text
    rows = page.rows("Temperature and step of Gradient")
    assert rows["T = 5"][1] == DASH
    assert rows["T = 20"][2] == ("-0.0500" if objective == "inliers" else "-5.00 %")


def test_no_step_is_no_end_of_the_grid(write):
    assert "at the end" not in write(tunings=[replace(TUNING, chosen_eps=0.0)]).text
    assert "The chosen step lies at the end" in write(tunings=[replace(TUNING, chosen_eps=0.002)]).text


def test_ablation_is_a_table_with_intervals(page):
    rows = page.rows("What each part is worth")
    assert rows["none"] == ["preprocessing", "81.10 %", f"80.00 {DASH} 82.00 %"]
    assert rows["conv1 to fc"] == ["blocks", "93.30 %", f"92.00 {DASH} 94.00 %"]
    assert "Ablation, preprocessing: AUROC from 81.10 % (none) to 93.30 % (both)." in page.top


def test_reliability_has_every_figure_best_first(reliability, page):
    heading = "Which predictions to trust"
    rows = page.rows(heading)
    ranked = sorted(reliability, key=lambda f: f.aurc)
    assert [name for name in rows if name != "Detector"] == [f.detector for f in ranked]
    for f in ranked:
        values = (f.aurc, f.e_aurc, f.augrc, f.risk_at_80_coverage, f.coverage_at_5_risk)
        assert rows[f.detector] == [f"{100 * value:.2f} %" for value in values]
    assert f"{100 * min(f.risk_at_80_coverage for f in reliability):.2f} %" in page.best(heading)
    assert f"{100 * max(f.coverage_at_5_risk for f in reliability):.2f} %" in page.best(heading)
    assert "The band is pointwise: each 98 % interval (Clopper-Pearson)" in page.words(heading)
    assert f"{100 * ranked[0].wrong.mean():.1f} % of the predictions wrong" in page.words(heading)


def test_facts_are_shown(page):
    assert page.rows("Facts") == {"Seed": ["<7>"]}
    assert page.rows("Detectors as they ran") == {"msp": ["MSP()"]}


@pytest.mark.parametrize("given", ["tunings", "ablation", "reliability"])
def test_only_what_is_given_has_a_section(write, reliability, given):
    studies = {"tunings": [TUNING], "ablation": ROWS, "reliability": reliability}
    headings = {
        "tunings": "Temperature and step of Gradient", "ablation": "What each part is worth",
        "reliability": "Which predictions to trust",
    }  # fmt: skip
    page = write(**{given: studies[given]})
    assert list(page.sections) == [headings[given]]
    assert "Read this" not in page.top
    assert "Left out" not in page.top


def test_an_evaluation_without_extras_has_no_empty_sections(write, evaluation):
    bare = replace(
        evaluation, trivial={"textures": {}}, warnings=(), left_out={}, accuracy=None, facts={},
        inliers=replace(evaluation.inliers, seconds={}),
    )  # fmt: skip
    page = write(evaluation=bare)
    assert list(page.sections) == ["In-distribution images against textures", "ROC curves", "Scores"]
    assert not re.search("is right about|Read this|Left out|None", page.top)


def test_several_sets_have_a_table_each_and_a_mean(write, evaluation):
    other = scored("other", 30, 1.0)
    rows = (compared(other, "msp", 0.99), compared(other, "vim", 0.6), compared(other, "gradient", 0.98))
    both = replace(evaluation, outliers=(*evaluation.outliers, other), comparisons=evaluation.comparisons[2:] + rows)
    page = write(evaluation=both)
    assert "Best on average over 2 sets of outliers: gradient, mean AUROC 84.00 %" not in page.top  # msp lacks a set
    complete = replace(both, comparisons=(evaluation.comparisons[0], *both.comparisons))
    page = write(evaluation=complete)
    assert "Best on average over 2 sets of outliers: msp, mean AUROC 94.50 %" in page.top  # (0.9 + 0.99) / 2
    assert "Best on other: msp, AUROC 99.00 %" in page.top
    assert page.text.count("They say nothing about other networks") == 1
    assert "30 outliers" in page.words("In-distribution images against other")


def test_figures_without_a_value_are_dashes_come_last_and_are_never_best(write, evaluation):
    nothing = Figure(float("nan"), float("nan"), float("nan"))
    names = ("auroc", "fpr_at_95_tpr", "fpr_at_95_tpr_normal", "average_precision", "average_precision_normal")
    blank = replace(evaluation.comparisons[1], **dict.fromkeys(names, nothing), auroc_interval=(float("nan"),) * 2)
    page = write(evaluation=replace(evaluation, comparisons=(blank, *evaluation.comparisons[2:])))
    rows = page.rows("In-distribution images against textures")
    assert list(rows)[-1] == "energy"
    assert rows["energy"] == [f"{DASH} {DASH}", *[DASH] * 4]
    assert DASH not in page.best("In-distribution images against textures")
    assert "Best on textures: vim, AUROC 80.00 %" in page.top
    assert not re.search(r"\bnan\b", page.text)
    page = write(evaluation=replace(evaluation, comparisons=(blank,)))
    assert "No detector has an AUROC on textures" in page.top
    assert not page.images


def test_the_gradient_method_is_always_drawn(page):
    assert report.SHOWN == 5
    ranked = ["a", "b", "c", "d", "e", "f", "gradient,eps=0", "gradient"]
    assert report._shown(ranked) == ["a", "b", "c", "d", "gradient"]
    assert report._shown(ranked[:-1]) == ["a", "b", "c", "d", "gradient,eps=0"]
    assert report._shown(ranked[:6]) == ["a", "b", "c", "d", "e"]
    assert any("Histogram of the scores of gradient" in words for _, words in page.images)


def test_names_are_text_and_never_markup(write_drawn, evaluation, inliers, page):
    assert "&lt;i&gt;t" in page.html
    assert "<i>t" not in page.html

    def renamed(images):
        return replace(images, name=EVIL, scores={EVIL: images.scores["msp"]}, seconds={EVIL: 1.0, "forward": 1.0})

    hostile = OODEvaluation(
        EVIL, renamed(inliers), (renamed(evaluation.outliers[0]),),
        (replace(evaluation.comparisons[0], detector=EVIL, outliers=EVIL),),
        {EVIL: {EVIL: 0.5}}, (EVIL,), {EVIL: EVIL}, 0.5, {EVIL: EVIL},
    )  # fmt: skip
    tuning = replace(TUNING, detector=EVIL, classifier=EVIL, tuned_on=EVIL)
    figures = [replace(reliability_ood(inliers, bin_size=10)[0], detector=EVIL)]
    rows = [replace(ROWS[0], variant=EVIL)]
    shown = write_drawn(evaluation=hostile, tunings=[tuning], ablation=rows, reliability=figures, facts={EVIL: EVIL})
    assert "<b>" not in shown.html
    assert shown.text.count(r"<b>$\frac$\udcff") > 15


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="expected an evaluation, tuning, ablation or reliability"):
        write_ood_report(tmp_path / "r.html", title="t", facts={"a": "b"})
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="expected a file in an existing folder"):
        write_ood_report(tmp_path / "nowhere" / "r.html", title="t", ablation=ROWS)


# Plots


def decoded(png):
    """Pixels of a plot; not blank, and large enough for 700 px."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width >= 700
        assert image.height >= 250
        plain = image.convert("RGB")
        assert len(plain.getcolors(1 << 24)) > 20
        return np.asarray(plain)


def test_every_plot_draws_its_data(evaluation, inliers, reliability):
    outliers = evaluation.outliers[0]
    other = replace(outliers, scores={name: values + 5 for name, values in outliers.scores.items()})
    changed = replace(TUNING, chosen_eps=0.002)
    curve = reliability[0].curve
    pairs = {
        "choice": (draw.grid_plot(TUNING), draw.grid_plot(changed)),
        "values": (draw.grid_plot(TUNING), draw.grid_plot(replace(TUNING, values=TUNING.values[::-1]))),
        "histogram": (draw.histogram_plot(inliers, outliers, "msp"), draw.histogram_plot(inliers, other, "msp")),
        "roc": (
            draw.roc_curves_plot(evaluation, "textures", DETECTORS),
            draw.roc_curves_plot(replace(evaluation, outliers=(other,)), "textures", DETECTORS),
        ),
        "ablation": (draw.ablation_plot(ROWS), draw.ablation_plot((replace(ROWS[0], auroc=0.7), *ROWS[1:]))),
        "interval": (draw.ablation_plot(ROWS), draw.ablation_plot((replace(ROWS[0], interval=(0.7, 0.9)), *ROWS[1:]))),
        "band": (
            draw.reliability_plot(reliability[0]),
            draw.reliability_plot(replace(reliability[0], curve=replace(curve, low=curve.low - 0.05))),
        ),
    }
    for name, (one, two) in pairs.items():
        assert not np.array_equal(decoded(one), decoded(two)), name
    assert draw.grid_plot(TUNING) == draw.grid_plot(TUNING)


def test_plots_of_several_have_a_panel_each(inliers, evaluation, reliability):
    outliers = evaluation.outliers[0]
    one, two = (draw.histogram_plot(inliers, sets, "msp") for sets in (outliers, [outliers] * 2))
    assert len(decoded(two)) > 1.5 * len(decoded(one))
    one, two = (draw.reliability_plot(figures) for figures in (reliability[:1], reliability[:2]))
    assert len(decoded(two)) > 1.5 * len(decoded(one))
    assert len(decoded(draw.ablation_plot(ROWS))) > len(decoded(draw.ablation_plot(ROWS[:2])))


def test_bins_are_logarithmic_only_over_two_decades_of_positive_scores():
    for scores, expected in (
        ([1.0, 101.0], True), ([1.0, 99.0], False), ([0.0, 1e4], False), ([-1.0, 1e4], False),
        ([1.0, np.inf, np.nan, 500.0], True),
    ):  # fmt: skip
        edges, logarithmic = draw._edges(np.array(scores))
        assert logarithmic is expected, scores
        finite = [score for score in scores if np.isfinite(score)]
        assert (edges[0], edges[-1]) == (min(finite), max(finite))
        assert np.ptp(np.diff(np.log(edges) if expected else edges)) < 1e-9 * edges[-1]


def test_odd_data_is_drawn(inliers, evaluation, reliability):
    outliers = evaluation.outliers[0]
    for value in (3.0, 1e20, np.nan):
        same = [replace(images, scores={"a": np.full(len(images), value)}) for images in (inliers, outliers)]
        decoded(draw.histogram_plot(*same, "a"))
    decoded(draw.grid_plot(replace(TUNING, grid=Grid((1.0,), (0.0,)), values=[[float("nan")]], chosen_eps=9.0)))
    decoded(draw.grid_plot(replace(TUNING, grid=Grid(), values=[[0.5] * 21] * 10)))
    decoded(draw.ablation_plot([replace(ROWS[0], auroc=float("nan"), interval=(float("nan"),) * 2)]))
    decoded(draw.reliability_plot(reliability_ood(inliers, bin_size=500)[0]))


def test_roc_plot_names_what_it_cannot_draw(evaluation):
    with pytest.raises(ArgumentError, match="outliers_name: expected one of textures, got svhn"):
        draw.roc_curves_plot(evaluation, "svhn", ["msp"])
    with pytest.raises(ArgumentError, match="detectors: expected 1 to 6 names, got 0"):
        draw.roc_curves_plot(evaluation, "textures", [])
