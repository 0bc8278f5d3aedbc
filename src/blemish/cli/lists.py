"""`blemish list`: what there is to choose from."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from ..parameters import parameters_of
from .console import print_rows
from .options import JsonOption


def list_(
    table: Annotated[
        Literal["methods", "presets", "backbones", "detectors", "datasets"], typer.Argument(help="Which table.")
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what there is to choose from."""
    rows: list[dict[str, object]]
    if table == "methods":
        from ..methods import Incremental
        from ..methods.registry import METHODS

        rows = [
            {
                "name": name,
                "what": (method.__doc__ or "").splitlines()[0],
                "update": issubclass(method, Incremental),
                "parameters": _parameters(method, as_json),
            }
            for name, method in METHODS.items()
        ]
    elif table == "presets":
        from ..presets import PRESETS

        rows = [row.as_row(name) for name, row in PRESETS.items()]
    elif table == "backbones":
        rows = _backbones(short=not as_json)
    elif table == "detectors":
        from ..ood import DETECTORS

        rows = [
            {
                "name": name,
                "what": (detector.__doc__ or "").splitlines()[0],
                "learns": detector.learns,
                "needs": sorted(detector.needs),
                "parameters": _parameters(detector, as_json),
            }
            for name, detector in DETECTORS.items()
        ]
    else:
        from ..datasets.layouts import LAYOUTS

        rows = [{"name": layout.name, "layout": layout.description} for layout in LAYOUTS]
    if as_json:
        typer.echo(json.dumps({table: rows}))
    else:
        print_rows(rows)


def _backbones(*, short: bool) -> list[dict[str, object]]:
    """What is known of each row; `short`: what fits on one line of a terminal."""
    from ..features.backbones import BACKBONES
    from ..features.costs import table_costs

    costs = table_costs()
    rows: list[dict[str, object]] = []
    for row in BACKBONES.values():
        cost = costs.get(row.name)  # None for a new row, until `python -m blemish.features.costs` has run
        figures: dict[str, object] = {
            "name": row.name,
            "strides": list(row.strides),
            "dim": sum(row.channels),
            "d": row.d,
            "parameters": cost and (f"{cost.parameters / 1e6:.2f} M" if short else cost.parameters),
            "multiply_adds": cost and (f"{cost.multiply_adds / 1e9:.2f} G" if short else cost.multiply_adds),
            "licence": row.licence.partition(";")[0] if short else row.licence,
        }
        more = {"taps": list(row.taps), "channels": list(row.channels), "weights": row.source or "none needed"}
        rows.append(figures if short else figures | more)
    return rows


def _parameters(kind: type, as_json: bool) -> object:
    """All that is known of each, or names and defaults, which fit into a table."""
    known = parameters_of(kind).values()
    return [p.as_json() for p in known] if as_json else {p.name: p.default for p in known}
