"""`blemish explain`: what a region is compared with, and in which simple ways it differs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Speaker
from .models import image_paths, load_model
from .options import DeviceOption, ImagesArgument, MaxPixelsOption, ModelArgument, ReportOption, check_report

if TYPE_CHECKING:
    from ..explain import Explanation


def explain_regions(
    model: ModelArgument,
    images: ImagesArgument,
    *,
    normal: Annotated[
        Path, typer.Option(help="Folder of normal images to compare with, such as those of the fit (train/good).")
    ],
    most: Annotated[int, typer.Option(min=1, help="Regions of an image that are explained, highest peak first.")] = 3,
    report: ReportOption = None,
    device: DeviceOption = "auto",
    max_pixels: MaxPixelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a region.")] = False,
) -> None:
    """Say for each region which normal patch is most like it, and what differs: brightness, colour, lines, structure.

    The words are measured on pixels. They say what differs, not what the model saw: its features see more.

    Example: blemish explain bottle.blemish photos --normal bottle/train/good --report why.html
    """
    from ..explain import explain
    from ..images.decode import MAX_PIXELS
    from ..images.source import from_folder, from_paths

    say = Speaker()
    check_report(report, beside=[model])
    limit = max_pixels or MAX_PIXELS
    paths = image_paths(images, say)
    known = from_folder(normal, max_pixels=limit)
    detector = load_model(model, device)
    detector.on_error, detector.max_pixels = "skip", limit
    with say.progress() as progress:
        found = explain(detector, from_paths(paths, max_pixels=limit), known, most=most, progress=progress)
    for explanation in found:
        typer.echo(json.dumps(_line(explanation)) if as_json else _words(explanation))
    say.line(f"{len(found)} regions in {len({one.name for one in found})} of {len(paths)} images.")
    if report is not None:
        from ..report.explanation import write_explanations

        write_explanations(found, report, title=model.name)
        say.line(f"Report: {report}")


def _line(explanation: Explanation) -> dict[str, Any]:
    nearest = [{"image": n.name, "centre": n.centre, "distance": n.distance} for n in explanation.nearest]
    region = {name: value for name, value in asdict(explanation.region).items() if name != "contour"}
    return {"image": explanation.name, "region": region, "nearest": nearest, "differences": explanation.differences}


def _words(explanation: Explanation) -> str:
    x, y, width, height = explanation.region.box
    where = f"{explanation.name} at {x:.0f}, {y:.0f} ({width:.0f} x {height:.0f}), p {explanation.region.p_value:.2g}"
    what = "; ".join(explanation.differences) or "none of the simple measures differs clearly"
    nearest = explanation.nearest[0] if explanation.nearest else None
    like = "" if nearest is None else f" Most like {nearest.name} at {nearest.centre[0]:.0f}, {nearest.centre[1]:.0f}."
    return f"{where}: {what}.{like}"
