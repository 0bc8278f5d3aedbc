"""The report on a study: what is compared and picked, and that the page says it, safely."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from blemish.cli import app
from blemish.errors import ArgumentError
from blemish.report import study_figures
from blemish.report import study_words as words
from blemish.report.page import NOTHING
from blemish.report.study import write_study_report
from blemish.report.study_markdown import escaped
from blemish.report.study_tables import study_tables
from blemish.study import compare as study
from blemish.study.plan import StudyPlan
from blemish.study.store import Store
from reference import picks as naive

EVIL = r"<b>$\frac$|"
TIMES = {"decode_ms": 4.0, "forward_ms": 10.0, "score_ms": 6.0, "fit_seconds": 2.0, "seconds": 3.0}
FACTS = {"threads": 1, "device": "cpu", "versions": {"torch": "2"}, "finished_at": "2026-01-01T00:00:00+00:00"}


def values(auroc, **changes):
    """The columns of a finished cell."""
    kinds = [
        {"kind": "good", "images": 9, "image_auroc": None, "flagged": 0.1},
        {"kind": "crack", "images": 5, "image_auroc": auroc, "flagged": 0.8},
    ]
    known = {
        "status": "finished", "image_auroc": auroc, "pixel_auroc": 0.9, "au_pro_30": 0.8, "au_pro_05": 0.4, "f1": 0.7,
        "intervals": {"image_auroc": [auroc - 0.03, auroc + 0.02]}, "rest": {"kinds": kinds}, "peak_bytes": 10**9,
        "model_bytes": 10**7, "shared_bytes": 0, "dataset_digest": "d", **TIMES, **FACTS,
    }  # fmt: skip
    return known | changes


def fill(path, plan, result):
    """Write a study; `result(cell)` gives a cell's columns, or None for one that waits."""
    cells = plan.cells()
    with Store(path / "study.sqlite") as store:
        store.add(cells)
        for cell in cells:
            if found := result(cell):
                store.record(cell.key, found)
        return store.rows()


def plan(*data, **changes):
    standard = {"data": data or ("/d/screw",), "methods": ("padim",), "backbones": ("resnet18",)}
    return StudyPlan(**standard | changes)


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["report", *(str(a) for a in arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def measured(points):
    choice = study.Configuration(
        method="padim", parameters=(), backbone="resnet18", weights="pretrained", taps="default", resize="256",
        crop=None, held_out=0.2, false_alarm_rate=0.05, white_level=None,
    )  # fmt: skip
    return [
        study.Measured(
            choice=replace(choice, backbone=f"b{i}"), quality=quality, interval=(quality - 0.05, quality + 0.05),
            by_dataset={}, seeds=1, decode_ms=0.0, forward_ms=0.0, score_ms=cost, fit_seconds=1.0, peak_bytes=1.0,
            model_bytes=1.0,
        )
        for i, (quality, cost) in enumerate(points)
    ]  # fmt: skip


# Fronts and picks

POINTS = st.lists(
    st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, 13.0])),
    min_size=1,
    max_size=12,
)


@given(POINTS)
def test_fronts_and_picks_are_those_of_plain_loops(points):
    everything = measured(points)
    front = study.pareto_front(everything, "total_ms")
    assert {everything.index(m) for m in front} == naive.front(points)
    assert [m.total_ms for m in front] == sorted(m.total_ms for m in front)
    picks = study.pick(everything)
    assert picks.bar == pytest.approx(naive.bar(points))
    for found, index in ((picks.quality, naive.best(points)), (picks.speed, naive.fastest(points))):
        assert (found.quality, found.total_ms) == points[index]
    assert _height(picks.balance, points) == pytest.approx(_height(everything[naive.knee(points)], points))
    assert all(one in front for one in (picks.quality, picks.speed, picks.balance))


def _height(one, points):
    """Several points may be equally far above the line."""
    (q0, t0), (q1, t1) = points[naive.fastest(points)], points[naive.best(points)]
    if t0 == t1:
        return one.quality
    return one.quality - q0 - (q1 - q0) * math.log(one.total_ms / t0) / math.log(t1 / t0)


def test_the_knee_is_the_point_farthest_above_the_line():
    points = [(0.5, 0.1), (0.94, 1.0), (0.96, 2.0), (0.97, 10.0), (0.98, 100.0), (0.95, 50.0)]
    picks = study.pick(measured(points))
    assert picks.bar == pytest.approx(0.932)
    assert [m.total_ms for m in (picks.speed, picks.balance, picks.quality)] == [1.0, 2.0, 100.0]


def test_overlapping_intervals_are_named_with_the_best():
    picks = study.pick(measured([(0.9, 1.0), (0.85, 1.0), (0.79, 1.0)]))
    assert [m.quality for m in picks.overlapping] == [0.85]


def test_nothing_better_than_guessing_gives_the_best_three_times():
    picks = study.pick(measured([(0.4, 5.0), (0.3, 1.0)]))
    assert picks.quality == picks.speed == picks.balance
    assert picks.bar == 0.4


# Averages


def test_each_data_set_counts_once_and_incomplete_configurations_are_left_out(tmp_path):
    def result(cell):
        if cell.method == "knn" and cell.dataset == "/d/mtd":
            return {"status": "failed", "reason": "WeightsError: none"}
        if cell.dataset == "/d/mtd" and cell.seed == 2:
            return None
        return values(0.6 + 0.1 * cell.seed + 0.05 * (cell.dataset == "/d/mtd"), score_ms=1.0 + cell.seed)

    rows = fill(tmp_path, plan("/d/screw", "/d/mtd", methods=("padim", "knn"), seeds=(0, 1, 2)), result)
    found = study.compare_configurations(rows)
    (one,) = found.measured
    assert (found.left_out, one.choice.method, one.seeds) == (1, "padim", 2)
    pairs = [(r["dataset"], r["image_auroc"]) for r in rows if r["method"] == "padim" and r["image_auroc"]]
    assert one.quality == pytest.approx(naive.mean_over_datasets(pairs))
    assert one.by_dataset == pytest.approx({"/d/screw": 0.7, "/d/mtd": 0.7})
    assert one.score_ms == pytest.approx((2.0 + 1.5) / 2)
    assert one.total_ms == pytest.approx(14 + 1.75)
    assert one.interval == pytest.approx((0.7 - 0.03 / math.sqrt(2), 0.7 + 0.02 / math.sqrt(2)))


def test_a_study_without_intervals_says_so(tmp_path):
    rows = fill(tmp_path, plan(methods=("padim", "knn")), lambda cell: values(0.9, intervals={}))
    found = study.compare_configurations(rows)
    assert found.measured[0].interval is None
    assert study.pick(found.measured).overlapping == ()
    assert "no intervals" in words.picked(found, words.Names(rows))[0].reason


def test_pixel_figures_compare_only_what_has_them(tmp_path):
    none = {"pixel_auroc": None, "au_pro_30": None, "au_pro_05": None}
    rows = fill(
        tmp_path, plan("/d/screw", "/d/mtd", methods=("padim", "knn")),
        lambda cell: values(0.9, **none if cell.method == "knn" or cell.dataset == "/d/mtd" else {}),
    )  # fmt: skip
    assert len(study.compare_configurations(rows).measured) == 2
    found = study.compare_configurations(rows, "pixel_auroc")
    assert found.datasets == ("/d/screw",)
    assert [m.choice.method for m in found.measured] == ["padim"]


def test_what_is_best_is_told_by_the_table_of_figures(tmp_path):
    missed = {"padim": 0.3, "knn": 0.1, "spade": 0.2}
    rows = fill(tmp_path, plan(methods=tuple(missed)), lambda _cell: values(0.9))
    rows = [{**row, "fpr_at_95_tpr": missed[row["method"]]} for row in rows]  # where smaller is better
    found = study.compare_configurations(rows, "fpr_at_95_tpr").measured
    assert [m.quality for m in found] == [0.1, 0.2, 0.3]
    assert [m.quality for m in study.best_of_each(found)] == [0.1, 0.2, 0.3]
    assert [m.quality for m in study.pareto_front(found, "total_ms")] == [0.1]


# Parts


def test_random_is_paired_with_pretrained_weights(tmp_path):
    def result(cell):
        return values(0.9 if cell.weights == "pretrained" else 0.5 + 0.1 * cell.seed)

    shared = {"methods": ("padim", "knn"), "backbones": ("resnet18", "filters")}
    fill(tmp_path, plan("/d/screw", "/d/mtd", **shared), result)
    rows = fill(tmp_path, plan("/d/screw", methods=("padim",), weights="random", seeds=(0, 1, 2)), result)
    (one,) = study.pair(rows)
    assert (one.choice.method, one.choice.backbone, one.dataset) == ("padim", "resnet18", "/d/screw")
    assert one.pretrained == (0.9,)
    assert one.random == pytest.approx((0.5, 0.6, 0.7))
    assert one.difference == pytest.approx(0.3)
    assert study.deviation(one.random) == pytest.approx(np.std(one.random, ddof=1))
    assert study.deviation(one.pretrained) is None
    assert {study.Configuration.of(r).weights for r in rows} == {"pretrained", "random", "built-in"}


def test_layers_are_compared_within_methods_that_have_several(tmp_path):
    def result(cell):
        return values(0.8 if cell.method == "knn" else 0.7 + 0.02 * len(cell.taps or ()))

    fill(tmp_path, plan(methods=("padim",), taps=("default", "all-subsets")), result)
    rows = fill(tmp_path, plan(methods=("knn",)), result)
    (grid,) = study.by_layers(study.compare_configurations(rows).measured)
    assert grid.columns == ("padim",)
    assert grid.rows == ("default", "layer1", "layer2", "layer3", "layer1+layer2", "layer1+layer3", "layer2+layer3",
                         "layer1+layer2+layer3")  # fmt: skip
    assert grid.mean("layer1+layer3") == pytest.approx(0.74)


def test_dimensions_average_only_layers_that_have_all_of_them(tmp_path):
    def result(cell):
        d = dict(cell.parameters)["dimensions"]
        if cell.taps == ("layer3",) and d == 50:
            return None
        return values(0.7 + d / 1000 + (0.1 if cell.taps == ("layer3",) else 0))

    rows = fill(tmp_path, plan(taps=("layer1", "layer2", "layer3"), dimensions=(50, 60, 25)), result)
    (curve,) = study.by_dimensions(study.compare_configurations(rows).measured)
    assert curve.taps == 2
    assert [d for d, _ in curve.points] == [25, 50, 60]
    assert [q for _, q in curve.points] == pytest.approx([0.725, 0.75, 0.76])


# The page


class Page:
    def __init__(self, folder):
        self.html = (folder / "report.html").read_text(encoding="utf-8")
        self.text = _text(self.html[self.html.index("<body>") :])
        self.markdown = (folder / "report.md").read_text(encoding="utf-8")
        self.sections = {_text(s[: s.index("</h2>")].partition(">")[2]): s for s in self.html.split("<section ")[1:]}

    def rows(self, heading):
        table = re.findall(r"<tr>.*?</tr>", self.sections[heading], re.S)[1:]
        return [[_text(cell) for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in table]


def _text(markup):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", markup))).strip()


@pytest.fixture
def quick(monkeypatch):
    """Draws plots without painting them."""
    monkeypatch.setattr(study_figures, "png", lambda figure: b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets, one with an evil name; finished, waiting and failed cells; without pixel figures for knn."""
    path = tmp_path_factory.mktemp("study")
    data = ("/d/screw", f"/d/{EVIL}")

    def result(cell):
        if cell.method == "knn" and cell.backbone == "mobilenet_v2":
            return None if cell.dataset == "/d/screw" else {"status": "failed", "reason": f"WeightsError: {EVIL}"}
        none = {"pixel_auroc": None, "au_pro_30": None, "au_pro_05": None} if cell.method == "knn" else {}
        auroc = {"resnet18": 0.95, "mobilenet_v2": 0.94, "filters": 0.7}[cell.backbone]
        auroc -= 0.2 * (cell.weights == "random") + 0.01 * len(cell.taps or ())
        times = {"forward_ms": {"resnet18": 20.0, "mobilenet_v2": 5.0, "filters": 1.0}[cell.backbone]}
        return values(auroc, **times, **none)

    wide = plan(*data, methods=("padim", "knn"), backbones=("resnet18", "mobilenet_v2", "filters"))
    fill(path, wide, result)
    fill(path, plan(*data, taps=("layer1", "layer2"), dimensions=(25, 50)), result)
    fill(path, plan(*data, weights="random", seeds=(0, 1)), result)
    return path


@pytest.fixture(scope="module")
def printed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new"
    result = run(folder, "--out", out)
    return result, out


@pytest.fixture(scope="module")
def page(printed):
    return Page(printed[1])


def test_the_command_says_where_and_what(printed, folder):
    result, out = printed
    assert [p.name for p in sorted(out.iterdir())] == ["report.html", "report.md", "study.csv", "tables.md"]
    assert [p.name for p in folder.iterdir()] == ["study.sqlite"]
    assert (
        "speed: padim on mobilenet_v2, default layers: 0.940 image AUROC, 15 ms an image; within 1.0 points of the "
        "best at 2 times its speed. The difference is inside the best one's 95 % interval; the two intervals overlap."
    ) in result.stdout
    assert "quality: padim on resnet18, default layers: 0.950 image AUROC, 30 ms an image; the highest" in result.stdout
    assert f"Report: {out / 'report.html'}" in result.stdout
    assert "1 cell of 24 waits" in result.stderr
    assert "1 cell of 24 failed" in result.stderr
    with (out / "study.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24


def test_json(folder, tmp_path, quick):
    found = json.loads(run(folder, "--out", tmp_path, "--json").stdout)
    assert found["cells"] == {"finished": 22, "waiting": 1, "failed": 1}
    assert (found["configurations"], found["left_out"]) == (10, 1)
    assert list(found["picks"]) == ["quality", "speed", "balance"]
    speed = found["picks"]["speed"]
    assert (speed["method"], speed["backbone"], speed["total_ms"]) == ("padim", "mobilenet_v2", 15.0)
    assert speed["ratio"] == pytest.approx(0.5)
    assert speed["by_dataset"] == pytest.approx({"screw": 0.94, EVIL: 0.94})


def test_is_one_file_that_fetches_nothing_and_runs_its_own_script_only(page):
    assert not re.search(r"https?://|url\(|@import|<link|srcset|href", page.html)
    assert page.html.count("<script") == 1
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'\">", page.html)


def test_names_are_escaped(page):
    assert "<b>" not in page.html
    assert html.escape(EVIL, quote=False) in page.html
    assert escaped(EVIL) == r"\<b\>$\\frac$\|"
    assert EVIL not in page.markdown
    assert escaped(EVIL) in page.markdown


def test_sections_answer_the_questions(page):
    assert list(page.sections) == [
        "All configurations", "Quality against cost", "Layers", "Dimensions", "Data sets", "Kinds of defects",
        "Random against pretrained weights", "Cost of backbones and methods", "All finished cells",
        "Cells without figures", "Facts",
    ]  # fmt: skip
    for heading in page.sections:
        assert f"## {heading}\n" in page.markdown
    assert page.text.count("Best pick for") == 3
    assert "Chosen among 10 configurations by the very test images" in page.text
    assert "1 configuration without a figure on each of them: not compared." in page.text
    assert "Speed: the fastest (decode, forward and score) of those that keep at least 90 % of" in page.text


def test_the_table_of_cells_can_be_sorted_and_filtered(page):
    section = page.sections["All finished cells"]
    assert 'class="sortable search"' in section
    assert len(page.rows("All finished cells")) == 22
    assert 'data-sort="0.95"' in section
    heads = re.findall(r"<th scope[^>]*data-filter>(.*?)</th>", section)
    assert heads == ["Data set", "Method", "Backbone", "Weights"]
    knn = next(row for row in page.rows("All finished cells") if row[1] == "knn")
    assert knn[7:10] == ["\N{EN DASH}"] * 3
    assert 'data-sort="None"' not in page.html
    assert 'data-sort="nan"' not in page.html


def test_cells_without_figures_have_their_reasons(page):
    rows = page.rows("Cells without figures")
    assert [row[:3] for row in rows] == [["waiting", "1", "\N{EN DASH}"], ["failed", "1", f"WeightsError: {EVIL}"]]
    assert rows[0][3] == "screw, knn on mobilenet_v2, default layers, seed 0"


def test_pixel_figures_have_their_own_view_without_knn(page):
    views = page.sections["All configurations"].split('<div class="panel">')[1:]
    assert [_text(view[: view.index("</h3>")]) for view in views] == list(study.QUALITIES.values())
    assert [">knn<" in view for view in views] == [True, False, False]


def test_random_weights_stand_beside_pretrained_and_built_in_ones(page):
    row = page.rows("Random against pretrained weights")[0]
    assert row == ["padim", "resnet18", "2", "0.950", "0.750 ± 0.000", "+20.0", "2 of 2", "0.700"]


def test_the_markdown_is_short_and_counts_what_it_leaves_out(tmp_path, quick):
    rows = fill(
        tmp_path, plan(backbones=("resnet18", "mobilenet_v2", "squeezenet1_1", "filters"), taps=("all-subsets",)),
        lambda cell: values(0.9),
    )  # fmt: skip
    write_study_report(tmp_path, rows)
    text = (tmp_path / "report.md").read_text()
    assert "8 more rows are left out here" in text
    assert "28 rows: report.html and study.csv have them." in text
    assert max(len(block.splitlines()) for block in text.split("\n\n")) == 2 + 20


def test_one_cell(tmp_path, quick):
    fill(tmp_path, plan(), lambda cell: values(0.9, peak_bytes=None))
    text = run(tmp_path).stdout
    assert text.count("padim on resnet18, default layers: 0.900 image AUROC, 20 ms an image") == 3
    assert "No other configuration's interval overlaps it." in text
    page = Page(tmp_path)
    assert "Layers" not in page.sections
    assert "against peak memory" not in page.html
    assert "against model file" in page.html
    assert 'data-sort="nan"' not in page.html


def test_a_study_without_a_finished_cell_is_reported_too(tmp_path):
    fill(tmp_path, plan(seeds=(0, 1)), lambda cell: None if cell.seed else {"status": "failed", "reason": "E: no"})
    assert "Report: " in run(tmp_path).stdout
    page = Page(tmp_path)
    assert list(page.sections) == ["Cells without figures"]
    assert "0 cells finished, on 1 data set." in page.text
    assert "Best pick" not in page.html


def test_what_spoils_a_comparison_is_a_warning(tmp_path):
    rows = fill(
        tmp_path, plan("/d/a", "/d/b", seeds=(0, 1)),
        lambda cell: None if cell.dataset == "/d/b" else
        values(0.9, dataset_digest=str(cell.seed), threads=1 + cell.seed),
    )  # fmt: skip
    assert len(list(words.warnings(rows, words.Names(rows)))) == 4
    found = list(words.warnings(rows, words.Names(rows)))
    assert found[0].startswith("2 cells of 4 wait")
    assert found[1] == "No finished cell, and so no part in any mean: b."
    assert found[2].startswith("The files of a changed")
    assert found[3].endswith("their times do not compare.")


def test_other_work_of_the_machine_is_noticed_and_kept_out_of_the_times(tmp_path):
    busy = {"padim,sigma=2.0": (4.0, 30.0, 6.0), "padim,sigma=3.0": (8.0, 10.0, 7.0), "knn": (8.0, 9.0, 1.0)}
    rows = fill(
        tmp_path, plan(methods=tuple(busy)),
        lambda cell: values(0.9, **dict(zip(("decode_ms", "forward_ms", "score_ms"), busy[cell.spec], strict=True))),
    )  # fmt: skip
    # One decoder served all; padim's forward passes are the same, knn may read another layer.
    assert sorted(m.total_ms for m in study.compare_configurations(rows).measured) == [14.0, 20.0, 21.0]
    (warning,) = words.warnings(rows, words.Names(rows))
    assert "took up to 2 times as long to decode" in warning


def test_names_are_as_short_as_they_can_be(tmp_path):
    fill(tmp_path, plan("/x/screw", "/y/screw", preset="paper"), lambda cell: values(0.9))
    rows = fill(tmp_path, plan("/x/screw", weights="/w/my.pth"), lambda cell: values(0.9))
    names = words.Names(rows)
    assert list(names.datasets.values()) == ["x/screw", "y/screw"]
    shown = [names(study.Configuration.of(row)) for row in rows]
    assert shown[0].endswith(" on resnet18, default layers, input 256, crop 224, held out 0.0")
    assert shown[2] == "padim on resnet18, default layers, weights my.pth, input auto, crop None, held out 0.2"


def _foreign(folder):
    with sqlite3.connect(folder / "study.sqlite") as file:
        file.execute("CREATE TABLE other (x)")
    file.close()


def _empty(folder):
    Store(folder / "study.sqlite").__exit__(None, None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "error: FOLDER: expected the folder of a study, with study.sqlite, got "),
        (_empty, "study.sqlite: expected at least one cell, got an empty study."),
        (_foreign, "study.sqlite: expected a study file of version 1, got version 0."),
        (lambda folder: (folder / "study.sqlite").write_text("x" * 5000), "study.sqlite: expected a study file, got "),
    ],
)
def test_wrong_folders_are_one_line(make, message, tmp_path):
    make(tmp_path)
    result = run(tmp_path, status=1)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_name_that_is_too_long_is_no_study(tmp_path):
    assert "expected the folder of a study" in run(tmp_path / ("x" * 300), status=1).stderr


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="rows: expected at least one cell, got an empty study"):
        write_study_report(tmp_path, [])


def test_tables_have_a_row_a_backbone_a_column_a_data_set_and_say_what_is_random(tmp_path):
    """The thesis' tables: every cell is there, the mean only of all data sets, and random weights are named."""
    aurocs = {("a", 0): 0.5, ("a", 1): 0.7, ("b", 0): 0.8, ("b", 1): 0.9}
    both = plan("a", "b", methods=("padim", "spade"), backbones=("resnet18",), seeds=(0, 1), preset="paper")
    other = replace(both, backbones=("alexnet",), weights="random", methods=("padim",))

    def result(cell):
        at = (cell.dataset[-1], cell.seed)
        if cell.backbone == "alexnet" and at[0] == "b":
            return None
        return values(aurocs[at], pixel_auroc=None if cell.method == "spade" else 0.25)

    fill(tmp_path, both, result)
    text = study_tables(fill(tmp_path, other, result))
    tables = {title: body.strip().splitlines() for title, body in re.findall(r"## (.*)\n\n((?:\|.*\n)+)", text)}
    padim, spade = "padim,eps=0.01,reduction=random", "spade"
    assert list(tables)[:4] == [
        f"{padim}: image AUROC", f"{padim}: pixel AUROC", f"{padim}: AU-PRO 30 %", f"{padim}: time and memory",
    ]  # fmt: skip
    assert tables[f"{padim}: image AUROC"] == [
        "| backbone | weights | channels | d | a | b | mean |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        f"| alexnet | random | 256 | 100 | 0.600 r | {NOTHING} | {NOTHING} |",
        "| resnet18 | pretrained | 448 | 100 | 0.600 | 0.850 | 0.725 |",
    ]
    assert tables[f"{padim}: time and memory"][2:] == [
        "| alexnet | random | 2 | 10 | 6 | 1000 | 10 |",
        "| resnet18 | pretrained | 2 | 10 | 6 | 1000 | 10 |",
    ]
    (title,) = [title for title in tables if title.startswith(spade) and title.endswith("image AUROC")]
    assert tables[title][2:] == [f"| resnet18 | pretrained | {NOTHING} | {NOTHING} | 0.600 | 0.850 | 0.725 |"]
    assert not any(title.startswith(spade) and "pixel" in title for title in tables)
    assert "2 of 12 cells have no figures" in text
