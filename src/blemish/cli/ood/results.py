"""What the commands of `blemish ood` print, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..console import Speaker, print_rows

if TYPE_CHECKING:
    from ...evaluation.classifiers import OODEvaluation
    from ...evaluation.tuning import AblationRow, SelectiveFigures, Tuning


def tuned_facts(tuning: Tuning) -> dict[str, Any]:
    """What parameters were tuned to, and on what."""
    return {
        "detector": tuning.detector,
        "temperature": tuning.temperature,
        "eps": tuning.chosen_eps,
        "objective": tuning.objective,
        "tuned_on": tuning.tuned_on,
    }


def print_tuning(tuning: Tuning, out: Path) -> None:
    """The grid, and what was chosen."""
    # A table of 21 columns fits no terminal; the report and the file have all.
    some = slice(None, None, -(-len(tuning.grid.eps) // 6))
    rows: list[dict[str, object]] = []
    for temperature, values in zip(tuning.grid.temperatures, tuning.values, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        shown = {f"eps {e:g}": f"{v:.3f}" for e, v in zip(tuning.grid.eps[some], values[some], strict=True)}
        chosen = f"{tuning.grid.eps[best]:g} ({values[best]:.3f})"
        rows.append({"temperature": f"{temperature:g}", "best eps": chosen, **shown})
    print_rows(rows)
    typer.echo(
        f"{tuning.detector}: temperature {tuning.temperature:g}, eps {tuning.chosen_eps:g}, chosen by "
        f"{tuning.objective} on {tuning.tuned_on}. {out}"
    )


def say_left_out(say: Speaker, left_out: Mapping[str, str]) -> None:
    """Name the detectors that could not run, and why."""
    for name, reason in left_out.items():
        say.line(f"left out: {name} {reason}")


def print_outliers(
    evaluation: OODEvaluation, ablation: Sequence[AblationRow], figures: Sequence[SelectiveFigures]
) -> None:
    """A table for each set of outliers, the accuracy, and what else was measured."""
    for outliers in evaluation.outliers:
        rows = [c for c in evaluation.comparisons if c.outliers == outliers.name]
        rows.sort(key=lambda row: -row.auroc.value)
        typer.echo(f"\n{len(evaluation.inliers)} in-distribution images against {len(outliers)} of {outliers.name}:")
        print_rows(
            [
                {
                    "detector": row.detector,
                    "AUROC": f"{row.auroc.value:.4f} ± {row.auroc.deviation:.4f}",
                    "FPR95": f"{row.fpr_at_95_tpr.value:.4f} ± {row.fpr_at_95_tpr.deviation:.4f}",
                    "FPR95 (in-dist. positive)": f"{row.fpr_at_95_tpr_normal.value:.4f}",
                    "AP outliers": f"{row.average_precision.value:.4f}",
                    "AP in-dist.": f"{row.average_precision_normal.value:.4f}",
                    "ties": f"{row.tie_share:.1%}",
                }
                for row in rows
            ]
        )
    if evaluation.accuracy is not None:
        typer.echo(f"Accuracy of the classifier: {evaluation.accuracy:.4f}")
    if ablation:
        print_rows([ablation_cells(row) for row in ablation])
    if figures:
        print_rows([selective_cells(figure) for figure in figures])


def outliers_json(
    evaluation: OODEvaluation,
    ablation: Sequence[AblationRow],
    figures: Sequence[SelectiveFigures],
    tunings: Sequence[Tuning],
) -> dict[str, object]:
    """The same, and all that is known."""
    seconds = evaluation.inliers.seconds
    return {
        "classifier": evaluation.classifier,
        "accuracy": evaluation.accuracy,
        "comparisons": [asdict(row) for row in evaluation.comparisons],
        "trivial": evaluation.trivial,
        "warnings": list(evaluation.warnings),
        "left_out": evaluation.left_out,
        "detectors": evaluation.facts,
        "seconds_an_image": {name: value / len(evaluation.inliers) for name, value in seconds.items()},
        "ablation": [asdict(row) for row in ablation],
        "reliability": [selective_facts(figure) for figure in figures],
        "tuned": [tuned_facts(tuning) for tuning in tunings],
    }


def ablation_cells(row: AblationRow) -> dict[str, object]:
    """Of a table."""
    low, high = row.interval
    return {"variant": row.variant, "part": row.part, "AUROC": f"{row.auroc:.4f}", "95 %": f"{low:.4f} to {high:.4f}"}


def selective_facts(figures: SelectiveFigures) -> dict[str, object]:
    """The figures of selective prediction without their curve."""
    return {
        field.name: getattr(figures, field.name)
        for field in fields(figures)
        if field.name not in ("curve", "scores", "wrong")
    }


def selective_cells(figures: SelectiveFigures) -> dict[str, object]:
    """Of a table."""
    return {
        key: f"{value:.4f}" if isinstance(value, float) else value for key, value in selective_facts(figures).items()
    }


def accuracy_of(figures: Sequence[SelectiveFigures]) -> float:
    """Of the classifier."""
    return float(1 - figures[0].wrong.mean())


def write_findings(
    path: Path | None,
    say: Speaker,
    title: str,
    *,
    evaluation: OODEvaluation | None = None,
    tunings: Sequence[Tuning] = (),
    ablation: Sequence[AblationRow] = (),
    figures: Sequence[SelectiveFigures] = (),
) -> None:
    """The report, where one is asked for."""
    if path is None:
        return
    from ...report.ood import write_ood_report

    write_ood_report(path, title=title, evaluation=evaluation, tunings=tunings, ablation=ablation, reliability=figures)
    say.line(f"Report: {path}")
