"""What a reader of a report, or of a station's page, must know of a detector."""

from __future__ import annotations

from ..detector import Detector
from ..promises import spell_promise


def facts(detector: Detector) -> dict[str, str]:
    """What a reader of a report must know to judge its figures."""
    manifest = detector.manifest()
    parameters = manifest["parameters"]
    found = {"Method": manifest["method"], "Normal images learned": str(manifest["images"])}
    if detector.calibration_ is not None:
        calibration = detector.calibration_
        out = "held out" if calibration.kind == "split" else f"left out in turn ({calibration.kind})"
        found[f"Normal images {out}"] = str(len(calibration.scores))
        if calibration.groups is not None:
            found[f"Groups {out}"] = f"{calibration.n_groups}; the promised rate is that of one image of a new group"
        found["Wanted false-alarm rate"] = f"{calibration.false_alarm_rate:g}"
        found["Promise"] = spell_promise(calibration.promise)
    if detector.excluded_:
        found["Images excluded"] = excluded_words(detector)
    found |= {key.replace("_", " ").capitalize(): str(value) for key, value in parameters.items() if value is not None}
    settings = manifest["detector"]
    size = settings["preprocess"]
    found["Input"] = f"resize {size['resize']}" + (f", centre crop {size['crop']}" if size["crop"] else ", no crop")
    if settings["tile"]:
        found["Input"] += f", tiles of {settings['tile']}"
    if detector.region_ is not None:
        mask = detector.region_.mask
        found["Region of interest"] = "one for each image" if mask is None else f"{mask.mean():.1%} of each image"
    found["Versions"] = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    return found


def excluded_words(detector: Detector) -> str:
    """What the promised rate is worth where images were thrown out by hand."""
    count = detector.excluded_ + detector.images_ + held_out_images(detector)
    return f"{detector.excluded_} of {count}; the promise holds for images that the same rule would keep"


def held_out_images(detector: Detector) -> int:
    """Images that the model has not learned from."""
    calibration = detector.calibration_
    return len(calibration.scores) if calibration is not None and calibration.kind == "split" else 0
