"""The fuzz of command lines runs for a moment, and finds what it is there to find."""

from __future__ import annotations

import os

import pytest

import blemish.cli
import studies
from blemish.errors import BlemishError
from blemish.images.preprocess import Preprocess
from blemish.presets import PRESETS, Preset
from fuzz import commands as target


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """As `main` of the target does: small defaults, one process, and an error of the system is not one of our own."""
    monkeypatch.setitem(PRESETS, "default", Preset("small", preprocess=Preprocess(16)))
    monkeypatch.setattr("blemish.study.run.LocalExecutor.run", lambda self, group: studies.Inline().run(group))
    monkeypatch.setattr(blemish.cli, "OSError", BlemishError, raising=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_odd_command_lines_end_with_a_result_or_one_line():
    outcomes = list(target.fuzz(14, seed=1))
    assert [wrong for _, wrong in outcomes if wrong] == []
    assert {how.rpartition(": ")[2] for how, _ in outcomes} == {"done", "refused", "wrong use"}


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [(1, ValueError("odd"), ""), (1, None, "Traceback (most recent call last)"), (1, None, "hm"), (5, None, "")],
)
def test_a_broken_promise_is_found(status, error, said):
    with pytest.raises(target.Fault):
        target.judge(status, error, said)
