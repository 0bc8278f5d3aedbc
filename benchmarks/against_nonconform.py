"""Realised false alarms and power of our calibrations and of nonconform's, with the same scores on the same draws.

    python3.12 -m venv NC; NC/bin/pip install nonconform scikit-learn
    python benchmarks/against_nonconform.py NC/bin/python

Tabular data, which is nonconform's ground: a simulation in which leaving out is safe, one in which it is not, and the
breast cancer data that scikit-learn brings (benign is normal). Each draw has its own learned and new rows.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from calibrations import cross, full, full_nearest, guaranteed, loo, split
from decisions import print_table
from numpy.typing import NDArray

DRAWS, NEW, RATE = 200, 20, 0.1
SIDE = Path(__file__).with_name("_nonconform_side.py")


def main() -> None:
    python, random = sys.argv[1], np.random.default_rng(0)
    heads = ["data", "rule", "n", "by", "calibration", "proven", "false alarms", "found"]
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "data.npz")
        subprocess.run([python, SIDE, "data", kept], check=True)
        real = np.load(kept)
        rows = []
        cases = (("gamma", "knn", 20), ("gamma", "knn", 50), ("gamma", "unstable", 20), ("breast cancer", "knn", 50))
        for data, rule, n in cases:
            learned, new = drawn(None if data == "gamma" else real, rule, n, random)
            for by, found in (
                ("blemish", ours(rule, learned, new)),
                ("nonconform", theirs(python, rule, learned, new)),
            ):
                for name, p_values in found.items():
                    proven = guaranteed(name, rule, n, RATE) if by == "blemish" else None
                    if by == "nonconform" and name == "Split":
                        proven = guaranteed("split", rule, n, RATE)
                    rows.append([data, rule, str(n), by, name, "no" if proven is None else f"{proven:.1%}",
                                 *measured(p_values, 1.0 if proven is None else proven)])  # fmt: skip
                    print(rows[-1], flush=True)
        print_table(heads, rows)


def drawn(real: Any, rule: str, n: int, random: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """`(draws, n, d)` learned rows and `(draws, 2 NEW, d)` new ones, the second half anomalous."""
    learned, new = [], []
    for _ in range(DRAWS):
        if real is None:
            rows = random.standard_gamma(2.0, size=(n + 2 * NEW, n - 1 if rule == "unstable" else 4))
            rows[n + NEW :] += 4
        else:
            normal = random.permutation(real["normal"])[: n + NEW]
            rows = np.vstack([normal, random.permutation(real["anomalous"])[:NEW]])
        learned.append(rows[:n])
        new.append(rows[n:])
    return np.array(learned), np.array(new)


def ours(rule: str, learned: NDArray[Any], new: NDArray[Any]) -> dict[str, NDArray[Any]]:
    kinds: dict[str, Any] = {
        "split": split, "loo": loo, "cross": cross, "full": full_nearest if rule == "knn" else full,
    }  # fmt: skip
    return {
        name: np.array([judge(rule, rows, others, RATE) for rows, others in zip(learned, new, strict=True)])
        for name, judge in kinds.items()
    }


def theirs(python: str, rule: str, learned: NDArray[Any], new: NDArray[Any]) -> dict[str, NDArray[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(given, learned=learned, new=new, rule=rule, rate=RATE)
        subprocess.run([python, SIDE, "judge", given, out], check=True)
        return dict(np.load(out))


def measured(p_values: NDArray[Any], proven: float) -> list[str]:
    """Mean share of flagged normal rows with its 99.9 % interval over draws, and of anomalous ones."""
    flagged = p_values <= RATE * (1 + 1e-12)
    rates = flagged[:, :NEW].mean(axis=1)
    mean, error = rates.mean(), 3.29 * rates.std() / np.sqrt(DRAWS)
    fails = " FAILS" if mean - error > proven else ""
    return [f"{mean:.1%} ({max(0, mean - error):.1%} to {mean + error:.1%}){fails}", f"{flagged[:, NEW:].mean():.1%}"]


if __name__ == "__main__":
    main()
