from __future__ import annotations

import errno
import json

import pytest
from typer.testing import CliRunner

from blemish.cli import app
from blemish.cli import study as cli_study
from blemish.study.plan import StudyPlan
from faults import WriteFault, failing, watching
from studies import Inline, Scripted, write_products

SMALL = (
    "--backbones",
    "filters",
    "--resize",
    "64",
    "--held-out",
    "0.25",
    "--false-alarm-rate",
    "0.25",
    "--no-intervals",
)


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["study", *(str(a) for a in arguments)])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_products(tmp_path_factory.mktemp("data"))


@pytest.fixture
def here(monkeypatch):
    """Runs groups in this process; what ran is in `runs`."""
    executor = Scripted()
    monkeypatch.setattr(cli_study.WorkOptions, "executor", lambda _: executor)
    return executor


def test_the_command_teaches():
    text = run("--help").stdout
    assert "Example: blemish study" in text
    assert "--retry-failed" in text


def test_a_study_prints_its_table_and_writes_its_files(data, tmp_path, here):
    command = (data / "washer", data / "weave", "--methods", "padim,dimensions=20,knn", *SMALL, "--out", tmp_path / "s")
    result = run(*command)
    assert "padim dimensions=20" in result.stdout
    assert "4 cells finished, 0 failed" in result.stdout
    assert "4/4 cells: about 0 s left; weave knn filters default seed 0: image AUROC 0." in result.stderr
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "plan.toml", "study.csv", "study.sqlite", "tables.md",
    ]  # fmt: skip
    written = StudyPlan.load(tmp_path / "s" / "plan.toml")
    assert written == StudyPlan(
        data=(str(data / "washer"), str(data / "weave")),
        methods=("padim,dimensions=20", "knn"),
        backbones=("filters",),
        resize=64,
        held_out=0.25,
        false_alarm_rate=0.25,
        intervals=False,
    )
    assert len(here.runs) == 2
    again = run("--plan", tmp_path / "s" / "plan.toml", "--out", tmp_path / "s")
    assert again.stdout == result.stdout
    assert len(here.runs) == 2


def test_failures_show_in_the_table_and_in_the_exit_status(data, tmp_path, here):
    command = (data / "washer", "--methods", "padim,taps=level9,knn", *SMALL, "--out", tmp_path)
    result = run(*command, status=1)
    assert "1 cells finished, 1 failed" in result.stdout
    assert "1 failed: ArgumentError: taps: expected module names of filters" in result.stderr
    assert run(*command, status=1).stdout == result.stdout
    assert len(here.runs) == 1
    run(*command, "--retry-failed", status=1)
    assert here.runs[1] == ["padim"]


def test_json(data, tmp_path, here):
    run(data / "weave", "--methods", "knn", *SMALL, "--out", tmp_path)
    printed = json.loads(run(data / "washer", "--methods", "knn", *SMALL, "--out", tmp_path, "--json").stdout)
    assert (printed["finished"], printed["failed"]) == (1, 0)
    assert [row["dataset"] for row in printed["cells"]] == [str(data / "washer")]
    assert 0 <= printed["cells"][0]["image_auroc"] <= 1


@pytest.mark.parametrize("disk", ["free", "full"])
def test_an_interrupted_command_still_writes_the_table_and_a_full_disk_hides_no_error(
    disk, data, tmp_path, monkeypatch
):
    fault = WriteFault(tmp_path, stop=failing(errno.ENOSPC))

    class Interrupted(Inline):
        def run(self, group):
            yield next(super().run(group))
            fault.at = 0 if disk == "full" else None
            raise KeyError("stop")

    monkeypatch.setattr(cli_study.WorkOptions, "executor", lambda _: Interrupted())
    with watching(fault):
        command = ["study", str(data / "washer"), "--methods", "knn", *SMALL, "--out", str(tmp_path)]
        assert isinstance(CliRunner().invoke(app, command).exception, KeyError)
    table = tmp_path / "study.csv"
    assert (table.exists() and ",waiting," in table.read_text()) == (disk == "free")


def test_a_dry_run_lists_cells_needs_and_problems_and_runs_nothing(data, tmp_path, here):
    command = (
        data / "washer",
        tmp_path / "missing",
        "--methods",
        "padim,knn,taps=level9",
        *SMALL,
    )
    found = json.loads(run(*command, "--out", tmp_path / "s", "--dry-run", "--json").stdout)
    assert here.runs == []
    assert not (tmp_path / "s").exists()
    problems = [cell["problem"] for cell in found["cells"]]
    assert problems[0] == ""
    assert problems[1] == "taps: expected layers of filters, got level9."
    assert all("missing: expected a dataset folder" in problem for problem in problems[2:])
    first = found["cells"][0]
    assert first["images"] == 26
    assert float(first["features GB"]) == pytest.approx(26 * 27 * 4 * (256 + 64 + 16) / 1e9, abs=6e-4)
    assert float(first["peak GB"]) >= float(first["model GB"]) > 0
    assert found["seconds"] > 0
    listed = run(*command, "--out", tmp_path / "s", "--dry-run")
    assert "4 cells, 2 groups to read" in listed.stdout
    assert listed.stderr.startswith("0/2 groups: ")


def test_a_dry_run_knows_what_is_done(data, tmp_path, here):
    command = (data / "washer", "--methods", "knn", *SMALL, "--out", tmp_path)
    run(*command)
    found = json.loads(run(*command, "--dry-run", "--json").stdout)
    assert [(cell["status"], cell["problem"]) for cell in found["cells"]] == [("finished", "")]
    assert found["groups"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: DATA: expected dataset folders, or --plan FILE, got none."),
        (("d", "--methods", "padin"), "error: method: expected one of cflow, "),
        (("d", "--seeds", "0,one"), "error: --seeds: expected a list of whole numbers, got 0,one."),
        (("d", "--resize", "big"), "error: --resize: expected SIDE or HEIGHTxWIDTH"),
        (("d", "--resize", "\u00b2"), "error: --resize: expected SIDE or HEIGHTxWIDTH"),
        (
            ("d", "--methods", "ocsvm,gamma=abc"),
            "error: method ocsvm, gamma: expected a number above 0 or None, got abc",
        ),
        (("--plan", "none.toml"), "error: none.toml: the file does not exist"),
        (("d", "--plan", "p.toml", "--seeds", "1"), "error: --plan: expected all in the file, got DATA, --seeds as"),
        (("d", "--backbones", "resnet81"), "error: backbone: expected "),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, status=1)
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "study" / "study.sqlite").exists()


def test_an_address_that_leads_nowhere(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    result = run("d", "--backbones", "filters", "--ray", "nowhere", status=1)
    assert "error: --ray: expected the address of a running cluster, auto or local, got nowhere" in result.stderr
