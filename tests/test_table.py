"""The table of figures is the only list of them: what it says is computed, stored, compared, reported and printed."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blemish.metrics.table import TABLE, Figures, Outcome
from blemish.study.compare import QUALITIES
from blemish.study.store import Store
from test_study_report import fill, plan, values

STRANGER = """
import io, json, sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from blemish.metrics import table

sys.path.insert(0, sys.argv[2])


def gap(scores, anomalous):
    return float(np.median(scores[anomalous]) - np.median(scores[~anomalous]))


@dataclass(frozen=True)
class Figures(table.Figures):
    gap: float | None = table.row(table.Metric(
        gap, ("normal", "anomalous"), "ranking", "larger", has_interval=True, label="Gap of medians",
        explanation="Says how far {normal} lie apart", in_studies="compared",
    ))


table.Figures, table.TABLE = Figures, {field.name: field.metadata["row"] for field in fields(Figures)}

from blemish import evaluate, write_report
from blemish.cli.console import print_evaluation
from blemish.evaluation.detector import evaluation_json
from blemish.report.study import write_study_report
from test_evaluate import make, write
from test_study_report import fill, plan, values

folder = Path(sys.argv[1])
dataset = write(folder / "data")
evaluation = evaluate(make().fit(dataset.train_images()), dataset, intervals=True, repetitions=0)
page = write_report(evaluation, folder / "r.html", title="t").read_text()
rows = fill(folder, plan(), lambda cell: values(0.9, **asdict(evaluation.figures)))
write_study_report(folder, rows)
console = io.StringIO()
with redirect_stdout(console):
    print_evaluation(evaluation, False, extra={})
print(json.dumps({
    "json": evaluation_json(evaluation), "store": rows[0]["gap"], "page": page, "console": console.getvalue(),
    "study": (folder / "report.html").read_text(), "true": gap(
        np.array([r.decision.score for r in evaluation.records]),
        np.array([r.sample.anomalous for r in evaluation.records]),
    ),
}))
"""


@pytest.mark.heavy
def test_a_new_figure_is_a_function_and_a_row(tmp_path):
    """In a process of its own, where the table is longer before anybody reads it."""
    command = [sys.executable, "-c", STRANGER, tmp_path, Path(__file__).parent]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    gap = found["true"]
    assert found["json"]["gap"] == found["store"] == gap
    low, high = found["json"]["intervals"]["gap"]
    assert low <= gap <= high
    assert f"gap {gap:.4f} {low:.4f} to {high:.4f}" in " ".join(found["console"].split())
    page = found["page"]
    assert page.index("Average precision, normal") < page.index("Gap of medians") < page.index("Misses")
    assert "Says how far 55.6\N{NO-BREAK SPACE}% lie apart." in page  # 5 of 9 images are normal
    assert found["study"].count("<h3>Gap of medians</h3>") >= 3  # a view of each comparison


def test_rows_say_enough_for_everybody():
    shares = {name: row for name, row in TABLE.items() if row.topic != "facts"}
    assert len(shares) == 14
    for name, row in shares.items():
        assert row.better, name
        assert row.explanation, name
        assert not row.explanation.endswith("."), name
    assert {TABLE[name].better for name in QUALITIES} == {"larger"}  # configurations are ranked by the largest


def test_figures_without_what_they_need_are_left_open():
    outcome = Outcome(np.array([0.1, 0.2]), np.array([True, True]), None, None)
    figures = Figures(**{name: row.of(outcome) for name, row in TABLE.items()})
    assert figures == Figures(n_normal=0, n_anomalous=2)
    judged = Outcome(outcome.scores, outcome.anomalous, 0.1, None, flagged=np.array([False, True]))
    verdicts = {"f1": None, "false_alarms": None, "misses": 0.5}
    needing = {name: row for name, row in TABLE.items() if {"threshold", "verdicts"} & {*row.needs}}
    assert {name: row.of(judged) for name, row in needing.items()} == verdicts | {"threshold": 0.1}
    by_p_value = replace(judged, threshold=None)
    assert {name: row.of(by_p_value) for name, row in needing.items()} == verdicts | {"threshold": None}


@pytest.mark.parametrize("column", ["misses", "n_normal"])
def test_a_study_from_before_a_figure_was_known_still_opens(tmp_path, column):
    (row,) = fill(tmp_path, plan(), lambda cell: values(0.9))
    with sqlite3.connect(tmp_path / "study.sqlite") as file:
        file.execute(f"ALTER TABLE cells DROP COLUMN {column}")
    file.close()
    with Store(tmp_path / "study.sqlite") as store:
        assert store.rows() == [row]
        assert row[column] is None
        store.record(row["key"], {column: 1})
