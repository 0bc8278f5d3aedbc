"""The frozen multi-layer extractor: any network becomes a fast function from pixels to feature maps.

A network is read once with a dummy image (`_read_structure`), then its unused part is dropped, BatchNorm is folded into
the convolutions before it, memory becomes channels-last, and every call stops right after the deepest tap. What the
taps return becomes `(batch, channels, h, w)`, whatever its layout was.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ArgumentError, WeightsError
from ..types import FeatureMaps
from .backbones import Backbone
from .layout import MapLayout, Reached, as_map, main_output, read_layout, watching
from .weights import StateDict

Precision = Literal["float32", "bfloat16"]
RunPrecision = Literal["float32", "bfloat16", "int8"]
"""Also what other runtimes compute in."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_CPU_IMAGES = 4
"""Images in one forward pass on a CPU."""


class OtherRuntime(Protocol):
    """What runs the networks of extractors in place of torch: a `Runner` of `runtime.py`, which torch does not need."""

    preparing: float
    """Seconds that went into recording, comparing and measuring, and come once."""

    @property
    def name(self) -> str | None:
        """Of the runtime; None until it is chosen."""

    def maps(self, network: Extractor, pixels: Tensor) -> tuple[Tensor, ...] | None:
        """The outputs of the taps for a few images; None where torch shall make them."""

    def learn_ranges(self, network: Extractor, batches: Iterable[Tensor]) -> None:
        """See some learned images first, where the precision needs that."""

    def after_fork(self) -> None:
        """Begin anew: a process that was forked has none of its parent's threads."""


class Extractor:
    """Maps pixels `(batch, 3, height, width)` in [0, 1] to the outputs of the tapped modules.

    Equal to the plain network in `eval()` mode up to rounding; always float32. Build one with `build_extractor`.
    """

    def __init__(
        self, module: nn.Module, backbone: Backbone, structure: _Structure, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.module = module.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = backbone
        self.taps = structure.taps
        self.device = device
        self._dtype = dtype
        self._layouts = structure.layouts
        self._cloned = structure.overwritten
        self._make_lock()
        self.runner: OtherRuntime | None = None
        self._fingerprint = ""
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(backbone.mean, device=device).view(shape)
        self._inverse_std = 1 / torch.tensor(backbone.std, device=device).view(shape)

    def __call__(self, pixels: Tensor) -> FeatureMaps:
        # On a CPU a larger batch is no faster, it only needs more memory between the layers.
        parts = pixels.split(_CPU_IMAGES if self.device.type == "cpu" else len(pixels))  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            outputs = [self._run(part) for part in parts]
            maps = outputs[0] if len(outputs) == 1 else tuple(torch.cat(layer) for layer in zip(*outputs, strict=True))
        return FeatureMaps(maps, (pixels.shape[2], pixels.shape[3]))

    @property
    def is_plain(self) -> bool:
        """Whether it computes in float32 on a CPU, as other runtimes do."""
        return self.device.type == "cpu" and self._dtype == torch.float32

    def _run(self, pixels: Tensor) -> tuple[Tensor, ...]:
        found = None if self.runner is None else self.runner.maps(self, pixels)
        return self.maps(pixels) if found is None else found

    @contextmanager
    def on_torch(self) -> Iterator[None]:
        """Leave the runner aside: while the network is trained or recorded, it runs on torch."""
        self.runner, kept = None, self.runner
        try:
            yield
        finally:
            self.runner, self._fingerprint = kept, ""

    def fingerprint(self) -> str:
        """Of the network as it is, and what else decides what it makes of pixels; 16 hexadecimal digits."""
        if not self._fingerprint:
            scaling = (self.backbone.name, self.backbone.mean, self.backbone.std, self.taps)
            tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
            digest = hashlib.sha256(repr(scaling).encode())
            for name in sorted(tensors):
                digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
                digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def maps(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The maps of all images in one pass by torch; unlike a call, with gradients for parameters that want some."""
        size, known = (pixels.shape[2], pixels.shape[3]), self.backbone.trace_size
        pixels = (pixels.to(self.device) - self._mean).mul_(self._inverse_std)
        # The layout comes last: on three interleaved channels the same arithmetic takes twice as long.
        pixels = pixels.to(self._dtype, memory_format=torch.channels_last)
        try:
            with self._lock:
                outputs = _tapped(self.module, pixels, self.taps, self._cloned)
        except Exception as error:  # a network that does not take a size may fail in any way
            if size == (known, known) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ArgumentError.about(
                "images",
                expected=f"a size that {self.backbone.name} takes",
                got=f"{size[0]} x {size[1]} pixels ({error})",
                instead=f"It takes {known} x {known}: use Preprocess(resize={known}).",
            ) from error
        return tuple(
            as_map(outputs[tap], tap=tap, pixels=pixels, layout=layout).float()
            for tap, layout in zip(self.taps, self._layouts, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_lock()

    def _make_lock(self) -> None:
        """Make a free lock: hooks live on the shared module, so there is one forward pass at a time.

        A copy, or a process forked by another thread, may hold hooks of a pass that ends elsewhere.
        """
        self._lock = threading.Lock()
        _EXTRACTORS.add(self)
        for layer in self.module.modules():
            for number in [number for number, hook in layer._forward_hooks.items() if isinstance(hook, _Catch)]:
                del layer._forward_hooks[number]

    def state(self) -> StateDict:
        """The parameters that the taps need, folded; `build_extractor(..., folded=...)` takes them back."""
        return {name: value.contiguous() for name, value in self.module.state_dict().items()}


_EXTRACTORS: WeakSet[Extractor] = WeakSet()
"""All that there are, for a forked process, which inherits a held lock but not the thread that would free it."""


def _after_fork() -> None:
    for extractor in list(_EXTRACTORS):
        extractor._make_lock()
        if extractor.runner is not None:
            extractor.runner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def build_extractor(
    backbone: Backbone,
    *,
    weights: StateDict | None = None,
    folded: StateDict | None = None,
    taps: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    precision: RunPrecision = "float32",
) -> Extractor:
    """Prepare a row for feature extraction.

    `weights` are the network's own parameters: every one that the tapped layers need must be there, others are
    passed over. `folded` are the parameters of an earlier `Extractor.state()` instead. With `precision="bfloat16"` the
    network computes in bfloat16 and its parameters take half the memory.
    """
    if precision not in PRECISIONS:
        raise ArgumentError.about(
            "precision", expected=f"{' or '.join(PRECISIONS)} on torch", got=precision,
            instead="int8 takes another runtime: Detector(runtime='auto').",
        )  # fmt: skip
    with torch.inference_mode(False), torch.no_grad():  # the structure is read from tensors' version counters
        chosen = tuple(taps) if taps else backbone.taps
        if folded is not None:
            _check_folded(backbone, chosen, folded)
        module = backbone.build().eval().requires_grad_(False)
        _check_taps(module, chosen, backbone)
        structure = _read_structure(module, chosen, backbone)
        if weights is not None:
            _load_needed(module, weights, structure, backbone)
        _simplify(module, structure)
        if folded is not None:
            try:
                module.load_state_dict(of_this_version(module, folded), strict=True)
            except RuntimeError as error:
                raise _not_its_own(backbone, str(error)) from error
        # The cast comes last: folding in bfloat16 would round twice.
        return Extractor(module, backbone, structure, device=torch.device(device), dtype=PRECISIONS[precision])


@dataclass(frozen=True)
class _Structure:
    """What one forward pass up to the deepest tap shows about a network."""

    taps: tuple[str, ...]
    dropped: tuple[str, ...]
    """Names of the modules without which the taps are the same: above all, those behind the deepest tap."""
    foldable: tuple[tuple[str, str], ...]
    """Names of (convolution, BatchNorm) pairs in which the second only ever follows the first."""
    overwritten: frozenset[str]
    """Taps whose output a later in-place operation changes: they must be copied when they are read."""
    layouts: tuple[MapLayout, ...]
    """One a tap. Read here once, not from each output: at some size, 32 channels of 32 x 32 can be read two ways."""


def _tapped(module: nn.Module, pixels: Tensor, taps: Sequence[str], cloned: frozenset[str]) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    hooks = {tap: _Catch(tap, outputs, wanted=len(taps), cloned=tap in cloned) for tap in taps}
    with watching([module.get_submodule(tap).register_forward_hook(hook) for tap, hook in hooks.items()]):
        module(pixels)
    return outputs


class _Catch:
    """A hook that keeps the output of a tap, and ends the pass once all are there."""

    def __init__(self, tap: str, outputs: dict[str, Tensor], *, wanted: int, cloned: bool) -> None:
        self._tap, self._outputs, self._wanted, self._cloned = tap, outputs, wanted, cloned

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found = main_output(output)
        self._outputs[self._tap] = found.clone() if self._cloned else found
        if len(self._outputs) == self._wanted:
            raise Reached


def _check_taps(module: nn.Module, taps: Sequence[str], backbone: Backbone) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for tap in taps:
        if tap not in names:
            top = [name for name in names if name.count(".") == 0]
            raise ArgumentError.about(
                "taps", expected=f"module names of {backbone.name} ({', '.join(top)}, or below them)", got=tap
            )
    if len(set(taps)) != len(taps):
        raise ArgumentError.about("taps", expected="different module names", got=", ".join(taps))


def _read_structure(module: nn.Module, taps: tuple[str, ...], backbone: Backbone) -> _Structure:
    """Run a dummy image through a copy of the network and watch.

    In float64, because the structure must be the same each time: a model file is read back with the structure of a
    network with other random parameters, and in float32 a few of those draws magnify rounding above any tolerance.
    """
    try:
        return _read_probe(copy.deepcopy(module).double(), taps, backbone)
    except ArgumentError:
        raise
    except Exception:  # a network with float32 constants may fail in any way
        return _read_probe(copy.deepcopy(module), taps, backbone)


def _read_probe(probe: nn.Module, taps: tuple[str, ...], backbone: Backbone) -> _Structure:
    generator = torch.Generator().manual_seed(0)
    _disturb(probe, generator)
    size = (backbone.trace_size, backbone.trace_size)
    pixels = torch.rand(1, 3, *size, generator=generator)
    tensors = (*probe.parameters(), *probe.buffers())
    pixels = pixels.to(next((t.dtype for t in tensors if t.is_floating_point()), pixels.dtype))
    calls, overwritten, before = _watch(probe, pixels, taps)
    foldable = _foldable(probe, calls)
    channels = dict(zip(backbone.taps, backbone.channels, strict=False))  # a custom row knows none
    layouts = tuple(read_layout(before[tap], image_size=size, channels=channels.get(tap)) for tap in taps)
    # A network may use a module without calling it (its weight, or another method), or read a convolution's output
    # outside the modules. No hook sees that, so the boldest structure that still gives the same features is taken.
    for dropped in (_idle(probe, calls), _idle(probe, calls, only_behind=True), ()):
        for folded in (foldable, ()):
            structure = _Structure(taps, dropped, folded, overwritten, layouts)
            if (dropped or folded) and _is_equal(structure, probe, pixels, before):
                return structure
    return _Structure(taps, (), (), overwritten, layouts)


def _disturb(module: nn.Module, generator: torch.Generator) -> None:
    """Fresh BatchNorm is nearly the identity and fresh scales are often 0: both would hide a wrong simplification."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    for parameter in module.parameters():
        if parameter.numel() and parameter.min() == parameter.max():
            parameter.add_(torch.rand(parameter.shape, generator=generator) / 2)


def _is_equal(structure: _Structure, probe: nn.Module, pixels: Tensor, before: dict[str, Tensor]) -> bool:
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*probe.parameters(), *probe.buffers())}
    trial = copy.deepcopy(probe, shared)  # modules are replaced below, but no tensor is written to
    _simplify(trial, structure)
    try:
        after = _tapped(trial, pixels, structure.taps, structure.overwritten)
    except Exception:  # a network that misses a module may fail in any way
        return False
    return all(after[tap].shape == before[tap].shape and _close(after[tap], before[tap]) for tap in structure.taps)


_Call = tuple[str, Tensor | None, Any]


def _watch(
    module: nn.Module, pixels: Tensor, taps: tuple[str, ...]
) -> tuple[list[_Call], frozenset[str], dict[str, Tensor]]:
    """Record (module name, first input, output) of every call, and which taps are overwritten in place later on."""
    calls: list[_Call] = []
    versions: dict[str, tuple[Tensor, int]] = {}
    copies: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls.append((name, inputs[0] if inputs else None, output))
            found = main_output(output)
            if name in taps and isinstance(found, Tensor):
                versions[name], copies[name] = (found, found._version), found.clone()
            if len(versions) == len(taps):
                raise Reached

        return hook

    started: list[str] = []  # a container that the early end interrupts never reaches its own forward hook

    def start(name: str) -> Any:
        return lambda _module, _inputs: started.append(name)

    handles = [layer.register_forward_hook(watch(name)) for name, layer in module.named_modules()]
    handles += [layer.register_forward_pre_hook(start(name)) for name, layer in module.named_modules()]
    with watching(handles):
        module(pixels)
    if len(versions) < len(taps):
        idle = ", ".join(tap for tap in taps if tap not in versions)
        raise ArgumentError.about("taps", expected="modules that run and return one tensor", got=idle)
    finished = {name for name, _, _ in calls}
    calls += [(name, None, None) for name in started if name not in finished]
    overwritten = frozenset(tap for tap, (output, version) in versions.items() if output._version != version)
    return calls, overwritten, copies


def _idle(module: nn.Module, calls: list[_Call], *, only_behind: bool = False) -> tuple[str, ...]:
    """Name the outermost modules in which nothing ran; `only_behind`: that are declared behind all that did."""
    alive = {""}
    for name, _, _ in calls:
        parts = name.split(".")
        alive.update(".".join(parts[:i]) for i in range(1, len(parts) + 1))  # a ModuleList never runs itself
    names = [name for name, _ in module.named_modules()]
    start = max(names.index(name) for name in alive) if only_behind else 0
    return tuple(name for name in names[start:] if name not in alive and name.rpartition(".")[0] in alive)


def _foldable(module: nn.Module, calls: list[_Call]) -> tuple[tuple[str, str], ...]:
    times = Counter(name for name, _, _ in calls)
    producers = {id(output): name for name, _, output in calls if isinstance(module.get_submodule(name), nn.Conv2d)}
    pairs = []
    for name, given, _ in calls:
        layer, producer = module.get_submodule(name), producers.get(id(given))
        if producer is None or not isinstance(layer, _BatchNorm) or times[name] > 1 or times[producer] > 1:
            continue
        readers = {reader for reader, read, _ in calls if read is given}
        if readers == {name} and layer.running_mean is not None:
            pairs.append((producer, name))
    return tuple(pairs)


def _simplify(module: nn.Module, structure: _Structure) -> None:
    """Drop what never runs and fold what can be folded; `module` must be in eval mode."""
    for name in structure.dropped:
        module.set_submodule(name, nn.Identity())
    for convolution, norm in structure.foldable:
        layer = module.get_submodule(norm)
        fused = fuse_conv_bn_eval(module.get_submodule(convolution), layer)  # type: ignore[type-var, arg-type]
        module.set_submodule(convolution, fused.requires_grad_(False))
        # timm's BatchNorm classes also hold the activation that follows.
        rest = [child for child in layer.children() if not isinstance(child, nn.Identity)]
        module.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max().clamp_min(1e-6))


def _load_needed(module: nn.Module, weights: StateDict, structure: _Structure, backbone: Backbone) -> None:
    """Copy every parameter that is not dropped; strict about those, tolerant about the rest."""
    own = module.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    dropped = tuple(f"{name}." for name in structure.dropped)
    needed = {name for name in own if not name.startswith(dropped)} - counters
    missing = sorted(needed - weights.keys())
    if missing:
        raise WeightsError(
            f"weights of {backbone.name}: {len(missing)} of {len(needed)} parameters that the taps "
            f"{', '.join(structure.taps)} need are missing: {', '.join(missing[:4])} ... "
            "Give the weights of this very architecture, or choose taps before the missing layers."
        )
    for name in sorted(needed):
        if weights[name].shape != own[name].shape:
            raise WeightsError.about(
                f"weights of {backbone.name}, {name}", expected=f"shape {tuple(own[name].shape)}", got=weights[name]
            )
    module.load_state_dict(of_this_version(module, {name: weights[name] for name in needed}), strict=False)


def _check_folded(backbone: Backbone, taps: Sequence[str], folded: StateDict) -> None:
    """Refuse stored parameters of another network before this one is built, which may take gigabytes.

    Names and shapes are compared with a network on the meta device, which has no parameters. Most of what lies in the
    tapped modules must be there: then the network is not much larger than the file. Where a network cannot be built so,
    or is small and part of blemish, the comparison after the build must do.
    """
    if backbone.source in ("", "built in"):
        return
    try:
        with torch.device("meta"):
            module = backbone.build()
    except Exception:  # its own code may ask for values
        return
    own, names = module.state_dict(), {name for name, _ in module.named_modules()}
    for name, tensor in folded.items():
        folds_in = name.endswith(".bias") and name.removesuffix(".bias") in names  # a BatchNorm gives one
        if not folds_in and (name not in own or own[name].shape != tensor.shape):
            raise _not_its_own(backbone, f"{name} {tuple(tensor.shape)} is none of its parameters")
    tapped = {name: p.numel() for name, p in own.items() if name.startswith(tuple(f"{tap}." for tap in taps))}
    there = sum(size for name, size in tapped.items() if name in folded)
    if 2 * there < sum(tapped.values()):
        raise _not_its_own(backbone, f"{there} of {sum(tapped.values())} numbers of the tapped modules are there")


def _not_its_own(backbone: Backbone, reason: str) -> WeightsError:
    return WeightsError(
        f"backbone {backbone.name}: the stored parameters do not fit the network that this installation builds "
        f"({reason}). Install the package versions named in the model file, or fit again."
    )


def of_this_version(module: nn.Module, state: StateDict) -> StateDict:
    """Mark parameters as this module's own: torchvision's MNASNet takes none that do not tell their version."""
    marked = OrderedDict(state)
    marked._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    return marked
