"""The side of `against_nonconform.py` that runs in nonconform's own environment: files in, p-values out."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, Self

import numpy as np
from nonconform import ConformalDetector, CrossValidation, JackknifeBootstrap, Split
from sklearn.datasets import load_breast_cancer

K = 2


class Rule:
    """What nonconform takes for a detector."""

    def __init__(self, rule: str = "knn") -> None:
        self.rule = rule

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        self.rows_ = np.asarray(X)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        if self.rule == "knn":
            squared = ((np.asarray(X)[:, None] - self.rows_[None]) ** 2).sum(axis=2)
            return np.partition(squared, K - 1, axis=1)[:, :K].mean(axis=1)
        z = X - self.rows_.mean(axis=0)
        return (z @ np.linalg.pinv(np.cov(self.rows_.T, bias=True), rcond=1e-9) * z).sum(axis=1)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"rule": self.rule}

    def set_params(self, **parameters: Any) -> Self:
        self.rule = parameters.get("rule", self.rule)
        return self


def strategies(n: int, rate: float) -> dict[str, Any]:
    needed = int(np.ceil(1 / rate)) - 1
    return {
        "Split": Split(n_calib=max(needed, round(0.2 * n))) if needed <= n // 2 else None,
        "CrossValidation(10), plus": CrossValidation(k=10, mode="plus"),
        "CrossValidation(n), plus": CrossValidation(k=None, mode="plus"),
        "CrossValidation(n), single model": CrossValidation(k=None, mode="single_model"),
        "JackknifeBootstrap(50), plus": JackknifeBootstrap(n_bootstraps=50),
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if sys.argv[1] == "data":
        data = load_breast_cancer()
        rows = (data.data - data.data[data.target == 1].mean(axis=0)) / data.data[data.target == 1].std(axis=0)
        np.savez(sys.argv[2], normal=rows[data.target == 1], anomalous=rows[data.target == 0])
        return
    cases = np.load(sys.argv[2])
    rule, rate = str(cases["rule"]), float(cases["rate"])
    found: dict[str, list[np.ndarray]] = {}
    for seed, (learned, new) in enumerate(zip(cases["learned"], cases["new"], strict=True)):
        for name, strategy in strategies(len(learned), rate).items():
            if strategy is not None:
                made = ConformalDetector(Rule(rule), strategy, score_polarity="higher_is_anomalous", seed=seed)
                found.setdefault(name, []).append(np.asarray(made.fit(learned).compute_p_values(new)))
    np.savez(sys.argv[3], **{name: np.array(values) for name, values in found.items()})


if __name__ == "__main__":
    main()
