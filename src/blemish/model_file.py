"""What a detector's model file says, beside what its method learned, and how it is read again.

`persist` guards a file against damage; here its sections become a method, settings and what was seen of the pictures.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .calibrate import Calibration, calibrate
from .errors import ArgumentError, BlemishError, MissingPackageError, ModelFileError, NotEnoughMemoryError
from .features.backbones import Backbone
from .features.weights import is_random
from .folds import same_again
from .images.preprocess import Preprocess
from .methods import Method, ScoresBeside
from .methods.registry import METHODS
from .ops.neighbours import Exact, IndexFactory
from .parameters import parameter, parameters_of, plain_parameters, read_plain
from .parts import Parts, Views
from .persist import Manifest
from .tensors import below, check_tensors
from .types import CalibrationKind, ImageBatch, Size

_NETWORK = ("backbone.", "input.")
"""Of a method's state: the network, which the models of several folds share unless they train it."""

_CALIBRATIONS = {"calibration": "k", "peaks": "p", "parts": "q"}
"""Of image scores, of map peaks and of parts, and the word for how many."""
_PARTS = {"scores": "float64 {}", "groups": "int64 {}", "folds": "int64 {}", "looks": "float64 {} 5"}


@dataclass(kw_only=True)
class ModelManifest:
    """What the manifest of a model file holds, beside its format and its digest: every key, and no other.

    The optional sections are for what a later version may add; this one passes them over.

    Parameters
    ----------
    method: the method's name in the registry.
    parameters: of the method, those of the role `model`.
    images: how many normal images it has learned from.
    excluded: how many normal images a fit was told to leave out.
    detector: the detector's own parameters of the role `model`.
    versions: of Python and the packages that wrote the file.
    chosen: why `auto` took the method; empty where it was named.
    digests: of what was learned, by name.
    sums: over what was learned, by name.
    left_out: about scores of normal images by models that were fitted without them.
    parts: what learned images of each view score, and how many images of it a held-out part has.
    runtime: which one made the calibration, where that was not torch (`running.py`).
    """

    method: str
    parameters: dict[str, Any]
    images: int = parameter(at_least=1)
    excluded: int = parameter(0, at_least=0)
    detector: dict[str, Any]
    versions: dict[str, str]
    chosen: str = ""
    digests: dict[str, Any] | None = None
    sums: dict[str, Any] | None = None
    left_out: dict[str, Any] | None = None
    parts: dict[str, Any] | None = None
    runtime: dict[str, Any] | None = None


@dataclass(kw_only=True)
class LeftOut:
    """The section `left_out` of a manifest.

    Parameters
    ----------
    calibration: what p-values rest on.
    unproven: why no rate is guaranteed; empty where one is.
    models: of each fold, where they are of several methods.
    """

    calibration: CalibrationKind = "split"
    unproven: str = ""
    models: tuple[dict[str, Any], ...] = ()


@dataclass(kw_only=True)
class FoldModel:
    """One of the `models` of that section.

    Parameters
    ----------
    method: the method's name in the registry.
    parameters: of the method, those of the role `model`.
    scale: its scores are divided by it.
    """

    method: str
    parameters: dict[str, Any]
    scale: float = parameter(above=0)


def write_method(method: Method) -> dict[str, Any]:
    """A method's sections of the manifest."""
    parameters = plain_parameters(method)
    if is_random(getattr(method, "weights", None)):
        parameters["weights"] = "random"  # then the seed says which, wherever the model is
    return {"method": method.name, "parameters": parameters}


def versions() -> dict[str, str]:
    """Of Python and the packages that scores depend on."""
    names = ("blemish", "torch", "torchvision", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_seen(
    learned: frozenset[int], calibrated_on: frozenset[int], *calibrations: Calibration | None
) -> dict[str, Tensor]:
    """What a file keeps of the pictures: which were learned, which set the thresholds; scores, peaks and parts."""
    digests = {"learned.digests": learned, "calibration.digests": calibrated_on}
    kept = {name: torch.tensor(sorted(found)) for name, found in digests.items() if found}
    for name, calibration in zip(_CALIBRATIONS, calibrations, strict=True):
        kept |= _write_calibration(name, calibration)
    return kept


def _write_calibration(name: str, calibration: Calibration | None) -> dict[str, Tensor]:
    if calibration is None:
        return {}
    kept = {f"{name}.scores": torch.from_numpy(calibration.scores)}
    parts = {"groups": calibration.groups, "folds": calibration.folds, "looks": calibration.looks}
    for part, values in parts.items():
        if values is not None:
            kept[f"{name}.{part}"] = torch.from_numpy(values)
    return kept


def write_left_out(
    calibration: Calibration | None, methods: Sequence[Method], scales: Sequence[float]
) -> dict[str, Any]:
    """The section of the manifest where images were left out in turn; `scales` are those of the folds' models."""
    section: dict[str, Any] = {}
    if calibration is not None and calibration.kind != "split":
        section = {"calibration": calibration.kind, "unproven": calibration.unproven}
    if scales:
        pairs = zip(methods, scales, strict=True)
        section["models"] = [write_method(method) | {"scale": scale} for method, scale in pairs]
    return {"left_out": section} if section else {}


def read_seen(
    kept: Mapping[str, Tensor],
    left_out: Mapping[str, Any] | None,
    *,
    false_alarm_rate: float,
    certain: float | None,
) -> tuple[frozenset[int], frozenset[int], Calibration | None, Calibration | None, Calibration | None]:
    """What `write_seen` was given; `left_out` is what `write_left_out` gave."""
    # An update drops the calibration, so that also a detector with `split` may have none.
    forms = {"learned.digests?": "int64 n", "calibration.digests?": "int64 m"}
    calibrations = {
        f"{name}.{part}?": form.format(count) for name, count in _CALIBRATIONS.items() for part, form in _PARTS.items()
    }
    check_tensors(kept, forms | calibrations)
    none = torch.tensor([], dtype=torch.int64)
    learned, calibrated_on = (
        frozenset(kept.get(name, none).tolist()) for name in ("learned.digests", "calibration.digests")
    )
    how = _read_left_out(left_out)
    calibration, peaks, parts = (
        _read_calibration(kept, name, how, false_alarm_rate=false_alarm_rate, certain=certain) for name in _CALIBRATIONS
    )
    if (peaks is not None and peaks.kind == "full") or (parts is not None and parts.threshold is None):
        raise ModelFileError(f"tensors peaks.*, parts.*: not expected with calibration {how.calibration}.")
    return learned, calibrated_on, calibration, peaks, parts


def _read_left_out(section: Mapping[str, Any] | None) -> LeftOut:
    known = {name: value for name, value in (section or {}).items() if name in parameters_of(LeftOut)}
    return LeftOut(**read_plain(LeftOut, known, of="left_out"))


def write_parts(views: Views, parts: Parts | None) -> dict[str, Any]:
    """The section of the manifest of a detector that judges parts."""
    if not views and parts is None:
        return {}
    return {"parts": {"views": dict(views), "most": {} if parts is None else dict(parts.most)}}


def read_parts(calibration: Calibration | None, section: Mapping[str, Any] | None) -> tuple[Views, Parts | None]:
    """What `write_parts` was given; `calibration` is that of the parts."""
    known = section or {}
    views = {str(name): (float(mean), float(spread)) for name, (mean, spread) in known.get("views", {}).items()}
    if any(not spread > 0 for _, spread in views.values()):
        raise ModelFileError.about("parts", expected="spreads above 0", got=views)
    if calibration is None:
        return views, None
    return views, Parts(views, {str(name): int(count) for name, count in known.get("most", {}).items()}, calibration)


def _read_calibration(
    kept: Mapping[str, Tensor], name: str, how: LeftOut, *, false_alarm_rate: float, certain: float | None
) -> Calibration | None:
    values, groups, folds, looks = (
        kept[tensor].numpy() if (tensor := f"{name}.{part}") in kept else None for part in _PARTS
    )
    if values is None:
        return None
    calibration = calibrate(
        values,
        false_alarm_rate=false_alarm_rate,
        groups=groups,
        certain=certain,
        kind=how.calibration,
        folds=folds,
        unproven=how.unproven,
        looks=looks,
    )
    if (values != calibration.scores).any():
        raise ModelFileError(f"tensor {name}.scores: not in ascending order.")
    return calibration


@contextmanager
def blaming(path: str | Path, backbone: Backbone | None) -> Iterator[None]:
    """Whatever goes wrong while a file is taken apart is the file's fault; says so, and in which file."""
    try:
        yield
    except (MissingPackageError, NotEnoughMemoryError, torch.OutOfMemoryError, NameError):  # a NameError is ours
        raise
    except BlemishError as error:
        if backbone is not None and not isinstance(error, ModelFileError):
            raise ArgumentError.about(
                "backbone", expected=f"the network with which {path} was fitted", got=f"another one ({error})"
            ) from error
        raise ModelFileError(f"{path}: {_printable(str(error))}") from error
    except Exception as error:  # of a method's `restore`, which may come from outside, and fail in any way
        reason = f"{type(error).__name__}: {_printable(str(error))}"
        raise ModelFileError(f"{path}: not a model of this version of blemish ({reason}). Fit again.") from error


def read_manifest(manifest: Manifest) -> tuple[ModelManifest, bool]:
    """The detector's own in a manifest, and whether this version wrote it, so that it must be complete."""
    for name in ("method", "parameters"):
        if name not in manifest:
            raise ModelFileError(f"not a detector's model file: its manifest has no {name}.")
    sections = {key: value for key, value in manifest.items() if key not in ("format", "digest")}
    about = ModelManifest(**read_plain(ModelManifest, sections, of="manifest"))
    return about, manifest["format"] > 2 and about.versions.get("blemish") == version("blemish")


def read_settings(detector: type, settings: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """The parameters of a class of detectors."""
    if "method" in settings:
        raise ArgumentError.about("detector", expected="the method beside it", got="method in it")
    found = _read_stored(detector, settings, of="detector", complete=complete, without=("method", "preprocess"))
    pixels = settings.get("preprocess")
    if not isinstance(pixels, dict):
        raise ArgumentError.about("detector: preprocess", expected="resize and crop", got=pixels)
    return found | {"preprocess": Preprocess(**read_plain(Preprocess, pixels, of="preprocess", complete=complete))}


def read_method(
    name: str,
    stored: Mapping[str, Any],
    *,
    complete: bool,
    device: str,
    backbone: Backbone | None,
    make_index: Callable[[str], IndexFactory] | None,
) -> Method:
    """The method that a model file describes by its name and stored parameters, not yet restored."""
    parameters = dict(stored)
    if name not in METHODS:
        raise ModelFileError(f"method {name[:40]} is not known here. Known: {', '.join(METHODS)}.")
    network = parameters.get("backbone")
    if isinstance(network, str) and network.startswith("custom:") and (backbone is None or backbone.name != network):
        raise ModelFileError(
            f"fitted on the network {network}. Pass it again: "
            f"Detector.load(path, backbone=custom_backbone(module, name={network.removeprefix('custom:')!r}, ...))."
        )
    if network and backbone is not None:
        parameters["backbone"] = backbone
    if parameters.get("index") is not None:
        parameters["index"] = _read_index(parameters["index"], make_index)
    kind = METHODS[name]
    method = kind(**_read_stored(kind, parameters, of="parameters", complete=complete))
    method.set_params(device=device)
    method.check()
    return method


def restore_method(method: Method, learned: dict[str, Tensor], *, size: Size) -> None:
    """Give a method what it learned; refuse what does not fit, or would only fail at the first image of this size."""
    method.restore(learned)
    _check_same(learned, method.state())
    # What was learned and the network's features must fit together.
    if not all(method.score(_blank(size)).are_finite()):
        raise ModelFileError("gives NaN or infinity for a black image.")


def write_folds(first: Method, others: Sequence[Method]) -> dict[str, Tensor]:
    """The models of the folds but the first, by number; the network where it is not that of an earlier like one."""
    written, methods = dict[str, Tensor](), (first, *others)
    for number, method in enumerate(others, start=1):
        shared = _network_of(method, methods[:number])
        for name, tensor in method.state().items():
            if name not in shared or not torch.equal(shared[name], tensor):
                written[f"fold.{number}.{name}"] = tensor
    return written


def read_folds(
    first: Method,
    tensors: Mapping[str, Tensor],
    left_out: Mapping[str, Any] | None,
    read: Callable[[str, Mapping[str, Any]], Method],
    *,
    size: Size,
) -> tuple[tuple[Method, ...], tuple[float, ...]]:
    """What `write_folds` was given, after the first model is restored, and what their scores are divided by.

    `left_out` is the section of the manifest, `read` makes a method of a name and its stored parameters.
    """
    numbers = {name.split(".")[1] for name in tensors if name.startswith("fold.")}
    if numbers != {str(number) for number in range(1, len(numbers) + 1)}:
        raise ModelFileError("tensors fold.*: expected numbers from 1.")
    of = "left_out: models"
    models = [FoldModel(**read_plain(FoldModel, model, of=of)) for model in _read_left_out(left_out).models]
    if models and len(models) != 1 + len(numbers):
        raise ModelFileError.about(of, expected=f"{1 + len(numbers)}", got=len(models))
    methods = [first]
    for number in range(1, len(numbers) + 1):
        method = read(models[number].method, models[number].parameters) if models else same_again(first)
        restore_method(method, _network_of(method, methods) | below(tensors, f"fold.{number}."), size=size)
        methods.append(method)
    return tuple(methods[1:]), tuple(model.scale for model in models)


def _network_of(method: Method, earlier: Sequence[Method]) -> dict[str, Tensor]:
    """The network of the first of the models that has this one's parameters; nothing where none has."""
    like = next((other for other in earlier if other == method), None)
    state = {} if like is None else like.state()
    return {name: tensor for name, tensor in state.items() if name.startswith(_NETWORK)}


def check_left_out(
    calibration: Calibration | None,
    peaks: Calibration | None,
    methods: Sequence[Method],
    kept: dict[str, Tensor] | None,
    *,
    size: Size,
) -> None:
    """Refuse what the calibration cannot be used with, or would only fail at the first image of this size."""
    kind = "split" if calibration is None else calibration.kind
    if (kept is not None) != (kind == "full"):
        raise ModelFileError(f"tensors left_out.*: {'missing' if kept is None else 'not expected'} with {kind}.")
    if kept is not None:
        if not isinstance(methods[0], ScoresBeside):
            raise ModelFileError(f"left_out: {methods[0].name} has no calibration full.")
        beside = methods[0].beside(_blank(size), kept)
        if calibration is None or beside.shape != (1, len(calibration.scores)) or not bool(beside.isfinite().all()):
            raise ModelFileError("tensors left_out.*: do not fit the scores.")
    for name, known in (("calibration", calibration), ("peaks", peaks)):
        if kind == "cross" and known is not None:
            # The last one's images may not have been readable.
            folds = None if known.folds is None else int(known.folds.max()) + 1
            if folds is None or folds > len(methods):
                raise ModelFileError(f"tensor {name}.folds: expected {len(methods)} folds, got {folds}.")


def _blank(size: Size) -> ImageBatch:
    return ImageBatch(torch.zeros(1, 3, *size), ("blank",), (size,))


def _read_stored(
    kind: type, values: Mapping[str, Any], *, of: str, complete: bool, without: Collection[str] = ()
) -> dict[str, Any]:
    """Parameters of a file: what is learned, never a place on a disk or a number of threads.

    A file of another version may lack parameters that are new since, which take their defaults.
    """
    known = parameters_of(kind)
    places = [name for name in values if name in known and known[name].role == "place"]
    for name in places:
        if complete and (name, values[name]) != ("weights", "random"):
            raise ArgumentError.about(of, expected="no parameter of the place", got=name)
    kept = {name: value for name, value in values.items() if name not in (*places, *without)}
    if values.get("weights") == "random" and "weights" in places:
        kept["weights"] = "random"
    return read_plain(kind, kept, of=of, complete=complete, without=without)


def _read_index(name: object, make_index: Callable[[str], IndexFactory] | None) -> IndexFactory:
    if not isinstance(name, str):
        raise ArgumentError.about("parameters: index", expected="a text", got=name)
    kind, _, storage = name.partition(":")
    if kind == "exact":
        return Exact(**{"storage": storage} if storage else {})  # type: ignore[arg-type]
    if make_index is None:
        raise ModelFileError(
            f"fitted with the index {name}. Pass what makes it: "
            "Detector.load(path, make_index=blemish.edges.faiss.index_from_name)."
        )
    return make_index(name)


def _check_same(stored: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a method passed over, or took for something else: it hands out what it took."""
    for name in stored.keys() | taken.keys():
        if name not in stored or name not in taken:
            raise ModelFileError(f"tensor method.{name}: {'missing' if name in taken else 'not expected here'}.")
        if (stored[name].dtype, stored[name].shape) != (taken[name].dtype, taken[name].shape):
            raise ModelFileError.about(
                f"tensor method.{name}", expected=_spelled(taken[name]), got=_spelled(stored[name])
            )


def _spelled(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _printable(text: str) -> str:
    """A file's names and texts reach the terminal in a message: no control characters, and not too many."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:2000])
