"""Damaged and malicious model files: nothing may come out of them but a right score or an error of our own.

    python tests/fuzz/model_files.py --count 20000 --seed 1

Small models of several methods are made, and mutants of them loaded; what loads judges one image. The kinds of mutants:

- `bytes`: flipped bits, cuts, repeats and zeros anywhere. The scores are the same as before, or there is an error.
- `manifest`: other types, extremes, nesting, unknown and missing keys, with a right digest.
- `tensors`: other shapes, types, names, NaN, infinity, extremes, with a right digest.

`Detector.load` may raise `ModelFileError` that names the file, and `predict` any error of `blemish.errors`. A mutant
may take `--seconds` of processor time, and raise the peak of memory by `--megabytes`. Images that a mutant may rightly
make large (up to 2^28 pixels a batch, see docs/security.md) and large networks by name are not drawn.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

from blemish import model_file, persist
from blemish.detector import Detector
from blemish.errors import BlemishError, MissingPackageError, ModelFileError
from blemish.features import extract
from blemish.images.preprocess import Preprocess
from blemish.methods.registry import METHODS
from campaign import limit_memory, peak_megabytes, stop_at_sigterm
from trained import REFERENCE

KINDS = ("bytes", "manifest", "tensors")
SIDE = 40
SHAPE = (SIDE + 3, SIDE - 3, 3)
ROI = np.pad(np.ones((30, 30), dtype=np.uint8), ((6, 7), (2, 5)))
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "padim": ("padim", {"backbone": "filters", "dimensions": 12, "reduction": "orthogonal"}, {}),
    "padim-random": (
        "padim", {"backbone": "filters", "dimensions": 12, "reduction": "random", "storage": "float16"}, {"roi": ROI}
    ),
    "padim-few": ("padim", {"backbone": "filters"}, {"calibration": "none"}),
    "padim-loo": ("padim", {"backbone": "filters", "dimensions": 12, "keep": "sums"}, {"calibration": "loo"}),
    "padim-parts": (
        "padim", {"backbone": "filters", "dimensions": 12}, {"part_by": r"p(\d+)_([ab])", "min_area": 4}
    ),
    "patchcore": ("patchcore", {"backbone": "filters", "storage": "int8"}, {"tile": 32}),
    "patchcore-unfold": (
        "patchcore", {"backbone": "filters", "patches": "unfold", "dimensions": 32, "reweight": 3},
        {"calibration": "none", "tile": 32},
    ),
    "knn": ("knn", {"backbone": "filters"}, {}),
    "knn-full": ("knn", {"backbone": "filters"}, {"calibration": "full"}),
    "knn-openvino": ("knn", {"backbone": "filters"}, {"runtime": "openvino"}),
    "knn-onnxruntime": ("knn", {"backbone": "filters"}, {"runtime": "onnxruntime"}),
    "spade": ("spade", {"backbone": "filters", "storage": "float16"}, {}),
    "gaussian": ("gaussian", {"backbone": "filters"}, {"calibration": "none", "tile": 32}),
    "gaussian-cross": ("gaussian", {"backbone": "filters"}, {"calibration": "cross", "folds": 4}),
    "subspace": ("subspace", {"backbone": "filters", "turns": 3}, {}),
    "svdd": (
        "svdd", {"backbone": "filters", "approximation": "nystroem", "components": 8},
        {"certain": 0.8, "false_alarm_rate": 0.4},
    ),
    "ocsvm": (
        "ocsvm", {"backbone": "filters", "approximation": "fourier", "components": 8, "pca": 0.9},
        {"calibration": "none", "tile": 32},
    ),
    "cflow": ("cflow", {"backbone": "filters", "blocks": 2, "condition": 4, "positions": 16, "steps": 2}, {}),
    "deep_svdd": ("deep_svdd", {"side": 8, "epochs": 1}, {"tile": 32}),
    "geom": ("geom", {"side": 8, "epochs": 1, "batch": 16}, {}),
    "joint": ("joint", {"backbone": "compact", "epochs": 1, "batch": 8, "reference": REFERENCE}, {}),
    "students": (
        "students", {"patches": (17,), "steps": 1, "grid": 2, "fast": False, "students": 2, "dense": False},
        {"calibration": "none"},
    ),
    "gaussian_finetune": ("gaussian_finetune", {"backbone": "compact", "epochs": 1}, {}),
    "mean_shifted": ("mean_shifted", {"backbone": "compact", "epochs": 1}, {}),
    "panda": ("panda", {"backbone": "compact", "epochs": 1}, {}),
}  # fmt: skip
"""Every method, with its parameters and the detector's, and every section that a file may have."""

QUICK = ("padim", "padim-few", "padim-loo", "padim-parts", "patchcore", "knn", "knn-full", "svdd", "cflow", "deep_svdd")
"""Enough for a short run."""


@dataclass(frozen=True)
class Sound:
    """A model as it was written, and what it says of the image."""

    name: str
    content: bytes
    tensors: dict[str, torch.Tensor]
    manifest: dict[str, Any]
    said: list[tuple[float, float | None]]


def make_models(names: tuple[str, ...], folder: Path) -> list[Sound]:
    """Fit one small model each."""
    (folder / "images").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)):
        Image.fromarray(image).save(folder / "images" / f"p{number // 2:02}_{'ab'[number % 2]}.png")
    found = []
    for name in names:
        kind, parameters, settings = MODELS[name]
        known = {"preprocess": Preprocess((SIDE, SIDE)), "false_alarm_rate": 0.2, "calibration": "split"}
        made = Detector(method=METHODS[kind](**parameters), **known | settings)  # type: ignore[arg-type]
        path = folder / f"{name}.blemish"
        made.fit(folder / "images").save(path)
        tensors, manifest = persist.load(path)
        found.append(Sound(name, path.read_bytes(), tensors, manifest, judge(path)))
    return found


def judge(path: Path) -> list[tuple[float, float | None]]:
    """What a model says of one image."""
    image = np.random.default_rng(1).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    return [(decision.score, decision.p_value) for decision in Detector.load(path, device="cpu").predict(image)]


def mutate_bytes(sound: Sound, draw: random.Random, path: Path) -> str:
    """Write a copy that a disk, a network or a hand has damaged."""
    content = bytearray(sound.content)
    # Half of them in the header, which is small beside the tensors.
    header = 8 + int.from_bytes(content[:8], "little")
    at = draw.randrange(header if draw.random() < 0.5 else len(content))
    length = draw.choice((1, 2, 8, 64, 1000))
    what = draw.choice(("flip", "flip", "flip", "flips", "cut", "zeros", "repeat", "remove", "length", "digit"))
    if what == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif what == "flips":
        for _ in range(length):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif what == "cut":
        del content[at:]
    elif what == "zeros":
        content[at : at + length] = bytes(len(content[at : at + length]))
    elif what == "repeat":
        content[at:at] = content[at : at + length]
    elif what == "remove":
        del content[at : at + length]
    elif what == "length":
        content[:8] = draw.choice((0, 1, header, header - 9, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        digits = [i for i in range(8, header) if content[i] in b"0123456789"]
        content[draw.choice(digits)] = draw.choice(b"0123456789")
    path.write_bytes(content)
    return f"{what} at {at}, {length}"


EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 17, 31, 10**6, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63,
    -(2**63) - 1, 10**30, "@long@", 0.0, -0.0, 0.5, -0.5, 1.0, 2.0, 1e-300, 1e-30, 1e30, 1e300, 5e-324,
    float("nan"), float("inf"), -float("inf"), "", "x", "none", "0", "1", "NaN", "compact", "filters", "pixels",
    "custom:x", "timm:x", "exact", "exact:int8", "exact:x", "faiss:flat", "float16", "int8", "bfloat16", "random",
    "../../../etc/passwd", "/dev/zero", "\0", "\x1b[31m", "\ud800", "é", "x" * 100_000,
    [], [1], [1, 2], [16, 16], [10**6, 10**6], [0.5], ["x"], ["level1"], ["level3", "level1"], [[1]], [None], {},
    {"x": 1}, {"resize": 40, "crop": None}, [[]] * 1000, list(range(1000)),
)  # fmt: skip


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values within a manifest."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*way, key)
        yield from places(item, (*way, key))


def mutate_manifest(sound: Sound, draw: random.Random, path: Path) -> str:
    """Write a copy with another manifest, and the digest that it should have."""
    manifest, done, deep = copy.deepcopy(sound.manifest), [], False
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *way, last = draw.choice(list(places(manifest)))
        holder: Any = manifest
        for key in way:
            holder = holder[key]
        what = draw.choice(("replace",) * 6 + ("remove", "add", "deep", "other", "tiny change", "copy"))
        shown = ""
        if what == "remove":
            del holder[last]
        elif what == "add" and isinstance(holder, dict):
            known = ("x", "format", "digests", "weights", "checkpoint", "device", "method", "index", "workers", "taps")
            holder[draw.choice(known)] = copy.deepcopy(draw.choice(EXTREMES))
        elif what == "deep":
            deep, holder[last] = True, "@deep@"
        elif what == "copy":
            holder[last] = copy.deepcopy(manifest)
        elif what == "tiny change" and type(holder[last]) in (int, float):
            holder[last] = holder[last] + draw.choice((-1, 1, 0.5))
        else:
            holder[last] = copy.deepcopy(draw.choice(EXTREMES))  # or a later mutant would have what was put into it
            shown = f"={holder[last]!r:.60}"
        done.append(f"{what} {'.'.join(map(str, (*way, last)))}{shown}")
    text = with_digest(sound.tensors, manifest)
    depth = draw.choice((5, 20, 999, 100_000)) if deep else 0
    text = text.replace('"@deep@"', "[" * depth + "]" * depth).replace('"@long@"', "9" * 5000)
    # The tensors are as they were, so that only the header is written anew: this is most of the time otherwise.
    end = 8 + int.from_bytes(sound.content[:8], "little")
    header = json.dumps(json.loads(sound.content[8:end]) | {"__metadata__": {"blemish": text}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + sound.content[end:])
    return "; ".join(done)


def with_digest(tensors: dict[str, torch.Tensor], manifest: dict[str, Any]) -> str:
    """A manifest as `persist.save` writes it, whatever is in it."""
    manifest = {key: value for key, value in manifest.items() if key != "digest"}
    try:
        manifest["digest"] = persist._content_digest(tensors, json.loads(json.dumps(manifest)))
    except (ValueError, UnicodeError):
        manifest["digest"] = "none: it has numbers that JSON has not"
    return json.dumps(manifest)


def mutate_tensors(sound: Sound, draw: random.Random, path: Path) -> str:
    """Write a copy with other tensors, and the digest that it should have."""
    tensors = {name: tensor.clone() for name, tensor in sound.tensors.items()}
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        # Not only of the backbone, which has the most.
        own = [name for name in tensors if "backbone" not in name and "layers" not in name]
        name = draw.choice(own if own and draw.random() < 0.8 else list(tensors))
        what = draw.choice(list(CHANGES))
        old, tensors[name] = tensors[name], CHANGES[what](tensors[name], draw).contiguous()
        if what == "rename":
            other = draw.choice(("x", "method.x", f"{name}.x", "calibration.x", "method.backbone.x", "method.9.mean"))
            tensors[other] = tensors.pop(name)
        elif what == "remove":
            del tensors[name]
        done.append(f"{what} {name} {tuple(old.shape)}")
    save_file(tensors, path, metadata={"blemish": with_digest(tensors, sound.manifest)})
    return "; ".join(done)


def _filled(value: float) -> Callable[[torch.Tensor, random.Random], torch.Tensor]:
    def change(tensor: torch.Tensor, draw: random.Random) -> torch.Tensor:
        if tensor.dtype == torch.bool:  # made so by another change
            return ~tensor
        limits = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        given = value
        if not tensor.is_floating_point():
            given = 0 if math.isnan(value) else max(limits.min, min(limits.max, value))
        found = tensor.clone().reshape(-1)
        if draw.random() < 0.5:
            found[:] = given
        elif len(found):
            found[draw.randrange(len(found))] = given
        return found.reshape(tensor.shape)

    return change


def _along(tensor: torch.Tensor, draw: random.Random, sizes: tuple[int, ...]) -> torch.Tensor:
    """Cut or repeat along one dimension."""
    if not tensor.ndim or not tensor.numel():
        return tensor[None]
    dim = draw.randrange(tensor.ndim)
    wanted = tensor.shape[dim] + draw.choice(sizes)
    return tensor.index_select(dim, torch.arange(max(0, wanted)) % tensor.shape[dim])


CHANGES: dict[str, Callable[[torch.Tensor, random.Random], torch.Tensor]] = {
    "nan": _filled(float("nan")),
    "inf": _filled(float("inf")),
    "zero": _filled(0),
    "minus": _filled(-1),
    "large": _filled(1e38),
    "huge": _filled(2**62),
    "small": _filled(1e-38),
    "longer": lambda tensor, draw: _along(tensor, draw, (1, 2, 100)),
    "shorter": lambda tensor, draw: _along(tensor, draw, (-1, -2, -(10**6))),
    "turned": lambda tensor, draw: tensor.transpose(0, -1) if tensor.ndim > 1 else tensor[None],
    "one more dimension": lambda tensor, draw: tensor[None],
    "flat": lambda tensor, draw: tensor.reshape(-1),
    "scalar": lambda tensor, draw: tensor.reshape(-1)[0] if tensor.numel() else tensor.sum(),
    "empty": lambda tensor, draw: tensor.reshape(-1)[:0],
    "empty and vast": lambda tensor, draw: tensor.reshape(-1)[:0].reshape(0, 2**40),
    "wide": lambda tensor, draw: tensor.new_zeros(draw.choice(((1, 500_000), (500_000, 1), (500_000,), (700, 700)))),
    "type": lambda tensor, draw: tensor.to(draw.choice((torch.float64, torch.float16, torch.int64, torch.bool))),
    "remove": lambda tensor, draw: tensor,
    "rename": lambda tensor, draw: tensor,
}


@dataclass(frozen=True)
class Limits:
    """What one mutant may take."""

    seconds: float
    megabytes: float


class Fault(Exception):
    """What must not happen."""


def outcome(path: Path, sound: Sound, kind: str) -> str:
    """What became of a mutant; raises `Fault`."""
    try:
        loaded = Detector.load(path, device="cpu")
    except MissingPackageError:
        return "refused"
    except ModelFileError as error:
        if str(path) not in str(error):
            raise Fault(f"the message does not name the file: {error}") from error
        if "alloc" in str(error) or "MemoryError" in str(error):
            raise Fault(f"asked for too much memory: {error}") from error
        return "refused"
    image = np.random.default_rng(1).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    try:
        said = [(decision.score, decision.p_value) for decision in loaded.predict(image)]
    except BlemishError as error:
        if kind == "bytes":
            raise Fault("loaded, though it is damaged") from error
        return "refused at the prediction"
    if kind == "bytes" and said != sound.said:
        raise Fault(f"says {said}, not {sound.said}")
    return "the same scores" if said == sound.said else "other scores"


def bounded(path: Path, sound: Sound, kind: str, limits: Limits) -> tuple[str, float]:
    """The same with its limits, and the seconds that it took; raises `Fault` whatever goes wrong."""
    before, start = peak_megabytes(), time.process_time()
    try:
        how = outcome(path, sound, kind)
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{error!r}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}") from error
    seconds, megabytes = time.process_time() - start, peak_megabytes() - before
    if seconds > limits.seconds or megabytes > limits.megabytes:
        raise Fault(f"took {seconds:.1f} s and {megabytes:.0f} MB, and ended as: {how}")
    return how, seconds


def remember_structures() -> None:
    """Read each network's structure once: it takes most of the time of a load, and depends on nothing in a mutant.

    Nor do the versions of packages.
    """
    read, known = extract._read_structure, {}
    model_file.version = functools.cache(model_file.version)

    def remembered(module: Any, taps: tuple[str, ...], backbone: Any) -> Any:
        key = backbone.name, backbone.trace_size, taps
        if key not in known:
            known[key] = read(module, taps, backbone)
        return known[key]

    extract._read_structure = remembered


def run(models: list[Sound], count: int, *, seed: int, limits: Limits, path: Path, first: int = 0) -> int:
    """Try the mutants up to `count`, say what came of them, and give the number of faults."""
    mutators = {"bytes": mutate_bytes, "manifest": mutate_manifest, "tensors": mutate_tensors}
    counts: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    weights = [min(1.0, 1e6 / len(sound.content)) for sound in models]  # large files take as long as several small ones
    try:
        for number in range(first, count):
            draw = random.Random(f"{seed} {number}")
            kind, sound = KINDS[number % len(KINDS)], draw.choices(models, weights)[0]
            done = mutators[kind](sound, draw, path)
            try:
                how, seconds = bounded(path, sound, kind, limits)
            except Fault as fault:
                how, seconds = "FAULT", 0.0
                print(f"FAULT {seed} {number}: {kind} of {sound.name}: {done}\n    {fault}", flush=True)
            counts[kind, how] += 1
            slowest = max(slowest, seconds)
    finally:  # also where somebody stops it
        for (kind, how), times in sorted(counts.items()):
            print(f"{kind:9} {how:26} {times:7}")
        faults = sum(times for (_, how), times in counts.items() if how == "FAULT")
        print(f"{counts.total()} mutants, {faults} faults; the slowest took {slowest:.2f} s, "
              f"the peak was {peak_megabytes():.0f} MB; {time.process_time():.0f} s of work")  # fmt: skip
    return faults


def main() -> int:
    """Parse, run, and exit with 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the mutant to begin with, where another run stopped")
    parser.add_argument("--seconds", type=float, default=2.0, help="processor time that a mutant may take")
    parser.add_argument("--megabytes", type=float, default=600.0, help="memory that a mutant may take")
    parser.add_argument("--quick", action="store_true", help="fewer methods")
    given = parser.parse_args()
    stop_at_sigterm()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    remember_structures()
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(QUICK if given.quick else tuple(MODELS), Path(folder))
        limit_memory(8 << 30)
        limits = Limits(given.seconds, given.megabytes)
        path = Path(folder) / "mutant.blemish"
        faults = run(models, given.count, seed=given.seed, limits=limits, path=path, first=given.first)
    return min(1, faults)


if __name__ == "__main__":
    sys.exit(main())
