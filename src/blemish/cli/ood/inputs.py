"""What the arguments of `blemish ood` name: images, detectors, and files of tuned parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ArgumentError
from ...parameters import read_texts, split_spec

if TYPE_CHECKING:
    from ...datasets.labelled import LabelledImages
    from ...evaluation.classifiers import Reader
    from ...evaluation.tuning import Tuning
    from ...ood import ODIN, Classifier, Gradient, OODDetector


def opened(*paths: Path | None) -> list[LabelledImages | None]:
    """What is at these paths, before a classifier is opened."""
    from ...datasets.labelled import open_labelled

    return [None if path is None else open_labelled(path) for path in paths]


def open_images(path: Path, labels: str, limit: int | None, seed: int) -> LabelledImages:
    """A set of images, its classes as `--labels` says, and at most `limit` of them."""
    from ...datasets.labelled import LabelledImages, open_labelled

    opened = open_labelled(path, folders_are_classes=labels == "folders")
    if labels == "none":
        opened = LabelledImages(opened.source, None, opened.name)
    return opened.sample(limit, seed=seed)


def named_sets(outliers: Sequence[str]) -> dict[str, Path]:
    """What `--outliers [NAME=]PATH` says, by name."""
    named: dict[str, Path] = {}
    for text in outliers:
        name, equals, path = text.partition("=")
        key, value = (name, Path(path)) if equals else (Path(text).stem, Path(text))
        if key in named:
            raise ArgumentError.about("--outliers", expected="different names", got=key, instead="Write NAME=PATH.")
        named[key] = value
    return named


def make_detector(text: str) -> tuple[str, OODDetector]:
    """`gradient,temperature=5` -> its name as written, and the detector."""
    from ...ood import DETECTORS

    name, settings = split_spec(text, of="--detector")
    if name not in DETECTORS:
        raise ArgumentError.about("--detector", expected=f"one of {', '.join(DETECTORS)}", got=name)
    return text, DETECTORS[name](**read_texts(DETECTORS[name], settings, of=f"--detector {name}"))


def make_detectors(text: str | None, classifier: Classifier, tunings: Sequence[Tuning]) -> dict[str, OODDetector]:
    """The detectors asked for, or all of them, with tuned parameters."""
    from ...ood import DETECTORS
    from ...ood.ensemble import MEASURES

    if text is not None and not text.split():
        raise ArgumentError.about("--detectors", expected="names, such as 'msp energy'", got=text)
    names = text.split() if text else [name for name in DETECTORS if name != "ensemble"]
    if not text and classifier.members:
        names += [f"ensemble,measure={measure}" for measure in MEASURES]
    return _with_tuned(dict(make_detector(name) for name in names), classifier, tunings)


def _with_tuned(
    made: Mapping[str, OODDetector], classifier: Classifier, tunings: Sequence[Tuning]
) -> dict[str, OODDetector]:
    found = dict(made)
    for tuning in tunings:
        if tuning.classifier != classifier.name.split(" + ")[0]:  # an ensemble is named after its first network
            raise ArgumentError.about("--tuned", expected=f"a file for {classifier.name}", got=tuning.classifier)
        tuned = [name for name, detector in made.items() if type(detector).__name__ == tuning.detector]
        if not tuned or sum(other.detector == tuning.detector for other in tunings) > 1:
            expected = "one file a detector, each for one of --detectors"
            raise ArgumentError.about("--tuned", expected=expected, got=f"a file for {tuning.detector}")
        found |= {name: tuning.apply(tunable(made[name])) for name in tuned}
    return found


def fit_only(
    classifier: Classifier, named: tuple[str, OODDetector], learned: LabelledImages | None, *, reader: Reader
) -> tuple[OODDetector, frozenset[str]]:
    """A detector that has learned, where it must, and the digests of what from; refused where it cannot run here."""
    from ...evaluation.classifiers import fit_detectors

    name, detector = named
    usable, left_out, seen = fit_detectors(classifier, {name: detector}, learned, reading=reader)
    if left_out:
        raise ArgumentError.about("--detector", expected="one that can run here", got=f"{name} {left_out[name]}")
    return usable[name], frozenset(seen.digests if seen else ())


def tunable(detector: OODDetector) -> ODIN | Gradient:
    """Refuse a detector that has no step and no temperature."""
    from ...ood import ODIN, Gradient

    if not isinstance(detector, ODIN | Gradient):
        raise ArgumentError.about("--detector", expected="gradient or odin", got=type(detector).__name__)
    return detector


def read_tunings(files: Sequence[Path] | None) -> list[Tuning]:
    """Files of `blemish ood tune`."""
    from ...evaluation.tuning import Tuning

    return [Tuning.load(file) for file in files or ()]


def digests_of(tunings: Sequence[Tuning]) -> frozenset[str]:
    """Of all images that were tuned on."""
    return frozenset(digest for tuning in tunings for digest in tuning.digests)
