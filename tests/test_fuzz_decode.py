"""The fuzz target runs for a moment, and finds what it is there to find."""

from __future__ import annotations

from collections import Counter

import pytest

from blemish.errors import ImageError
from fuzz import decode as target


def test_damaged_files_give_an_image_or_an_image_error():
    outcomes = list(target.fuzz(300, seed=1))
    assert [details for outcome, details in outcomes if outcome not in ("image", "refused", "slow")] == []
    counts = Counter(outcome for outcome, _ in outcomes)
    assert counts["image"] > 20  # else the changes would be too coarse to get beyond a file's first bytes
    assert counts["refused"] > 20


def test_the_corpus_is_small_and_sound(tmp_path):
    seeds = target.corpus()
    assert sum(map(len, seeds)) < 100_000
    for data in seeds:
        (tmp_path / "x.png").write_bytes(data)
        assert target.check(tmp_path / "x.png")[0] == "image"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError("odd"), "other error"), (ImageError("without a name"), "unnamed")],
)
def test_a_broken_promise_is_found(monkeypatch, error, outcome):
    def broken(path, *, max_pixels):
        raise error

    monkeypatch.setattr(target, "decode", broken)
    assert next(target.fuzz(1, seed=0))[0] == outcome
