"""The forward pass of a frozen network on another runtime than torch: the one home of which, and of how.

An extractor's own network is recorded once as an ONNX graph (`onnx_graph.py`), which ONNX Runtime and OpenVINO run.
Each is compared with torch on the first image that it sees, so the graph of another network is refused.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ArgumentError
from .backbones import Backbone
from .onnx_graph import record, require_packages

RuntimeName = Literal["torch", "onnxruntime", "openvino"]
RuntimeChoice = Literal["auto", "torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

TOLERANCE = 1e-4
"""Of the largest value of a layer's output, or of the largest score: by no more may float32 differ between runtimes."""

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_RECORDING = ("onnx", "onnxscript")
_FASTER = 0.95
"""Of torch's time: a runtime that takes more is not worth other last digits."""

_log = logging.getLogger("blemish")

Engine = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""From `(batch, 3, height, width)` pixels in [0, 1] to the outputs of the taps."""


class Network(Protocol):
    """What is asked of an extractor, which is the only one."""

    taps: tuple[str, ...]
    backbone: Backbone

    @property
    def is_plain(self) -> bool:
        """Whether it computes in float32 on a CPU, as other runtimes do."""

    def maps(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the taps by torch."""

    def fingerprint(self) -> str:
        """Of the network as it is."""


def require_runtime(choice: RuntimeChoice, *, recorded: bool = False) -> None:
    """Refuse a runtime that is not installed; `recorded`: its graphs are there. Raises `MissingPackageError`."""
    if choice in _EXTRAS:
        packages = (choice, *(() if recorded else _RECORDING))
        require_packages(packages, of=f"runtime {choice}", extra=_EXTRAS[choice])


def runtimes_at_hand() -> tuple[RuntimeName, ...]:
    """Those that are installed, torch first."""
    can_record = all(find_spec(name) is not None for name in _RECORDING)
    return ("torch", *(name for name in RUNTIMES[1:] if can_record and find_spec(name) is not None))


def runtime_version(name: RuntimeName) -> str:
    return version(name)


class Runner:
    """Runs the frozen networks of a detector; its extractors share one, so that each network is recorded once.

    `name` is the runtime; with the choice `auto` it is None until the first images have come, on which those at hand
    are measured. `graphs` are the networks that were recorded, by the digest of their parameters and the input's size.
    """

    def __init__(self, choice: RuntimeChoice, *, graphs: Mapping[str, bytes] | None = None) -> None:
        require_runtime(choice, recorded=graphs is not None)
        self.choice = choice
        self.name: RuntimeName | None = None if choice == "auto" else choice
        self.graphs: dict[str, bytes] = dict(graphs or {})
        self.preparing = 0.0
        """Seconds that went into recording, comparing and measuring, and come once."""
        self.reset()

    def reset(self) -> None:
        """Forget what runs, and keep what was recorded: a process that was forked has none of its parent's threads."""
        self._engines: dict[tuple[str, RuntimeName, int], Engine] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_engines", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.reset()

    def maps(self, network: Network, pixels: Tensor) -> tuple[Tensor, ...] | None:
        """The outputs of the taps for a few images; None where torch shall make them."""
        if self.name == "torch":
            return None
        with self._lock:
            start = perf_counter()
            name = self.name or self._choose(network, pixels)
            engine = None if name == "torch" else self._engine(network, pixels, name)
            self.preparing += perf_counter() - start
            return None if engine is None else tuple(torch.from_numpy(found) for found in engine(_plain(pixels)))

    def _choose(self, network: Network, pixels: Tensor) -> RuntimeName:
        """Measure the runtimes at hand on these images, and take the fastest one from now on."""
        if not network.is_plain:
            self.name = "torch"
            return self.name
        runs: dict[RuntimeName, Callable[[], object]] = {"torch": lambda: network.maps(pixels)}
        for name in runtimes_at_hand()[1:]:
            try:
                engine = self._engine(network, pixels, name)
            except ArgumentError as error:
                _log.info("runtime %s: passed over. %s", name, error)
                continue
            runs[name] = lambda engine=engine: engine(_plain(pixels))  # type: ignore[misc]
        times = _times(runs)
        best = min(times, key=lambda name: times[name] * (_FASTER if name == "torch" else 1))
        self.name = best
        told = ", ".join(f"{name} {1e3 * seconds / len(pixels):.1f}" for name, seconds in times.items())
        _log.info("runtime %s: ms an image of the network were %s", best, told)
        return best

    def _engine(self, network: Network, pixels: Tensor, name: RuntimeName) -> Engine:
        """What runs this network, compared with torch when it is made."""
        size = (pixels.shape[2], pixels.shape[3])
        key = f"{network.fingerprint()}.{size[0]}x{size[1]}"
        known = key, name, torch.get_num_threads()
        if known not in self._engines:
            if key not in self.graphs:
                _log.info("recording the network for runtime %s, once", name)
                self.graphs[key] = _record(network, size)
            engine = _ENGINES[name](self.graphs[key], known[2])
            _require_same(network, engine, pixels[:1], name)
            self._engines[known] = engine
        return self._engines[known]


def _plain(pixels: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = pixels.contiguous().numpy()
    return found


def _times(runs: Mapping[RuntimeName, Callable[[], object]]) -> dict[RuntimeName, float]:
    """Seconds of each, the best of some rounds in turn, after one that is not counted."""
    found = dict.fromkeys(runs, float("inf"))
    for counted in (False, True, True, True, True):
        for name, run in runs.items():
            start = perf_counter()
            run()
            if counted:
                found[name] = min(found[name], perf_counter() - start)
    return found


class _Frozen(nn.Module):
    """What is recorded. The network is no submodule: its hooks end the pass early, which a recorded module may not."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self._network.maps(pixels)


def _record(network: Network, size: tuple[int, int]) -> bytes:
    """The graph of a network at one input size, for any number of images, or for one where that cannot be."""
    reason = ""
    for images in (2, 1):
        try:
            found = record(_Frozen(network), torch.rand(images, 3, *size), any_batch=images > 1)
            return bytes(found.SerializeToString())
        except Exception as error:  # the exporters raise almost anything
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise ArgumentError.about(
        "runtime", expected="torch with this backbone, which an ONNX graph cannot hold",
        got=f"{network.backbone.name} ({reason.strip()[:200]})",
    )  # fmt: skip


def _require_same(network: Network, engine: Engine, pixels: Tensor, name: RuntimeName) -> None:
    """Refuse a graph that makes something else of an image than torch does."""
    theirs = engine(_plain(pixels))
    for tap, our, their in zip(network.taps, network.maps(pixels), theirs, strict=True):
        found = torch.from_numpy(their)
        same = our.shape == found.shape
        if not (same and bool((our - found).abs().max() <= TOLERANCE * our.abs().max().clamp_min(1e-6))):
            raise ArgumentError.about(
                "runtime", expected=f"outputs of {network.backbone.name} within {TOLERANCE:g} of torch's",
                got=f"other ones by {name} at tap {tap}", instead="Use runtime torch.",
            )  # fmt: skip


class _OnnxRuntime:
    """A graph on ONNX Runtime."""

    def __init__(self, graph: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        (given,) = self._session.get_inputs()
        self._input, self._one = given.name, given.shape[0] == 1

    def __call__(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return _singly(self._run, pixels) if self._one else self._run(pixels)

    def _run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self._session.run(None, {self._input: pixels})
        return found


class _OpenVINO:
    """A graph on OpenVINO."""

    def __init__(self, graph: bytes, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(graph)
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self._one = model.inputs[0].partial_shape[0].is_static
        self._model = core.compile_model(model, "CPU", hints)

    def __call__(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return _singly(self._run, pixels) if self._one else self._run(pixels)

    def _run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(self._model([pixels]).values())


_ENGINES: dict[RuntimeName, Callable[[bytes, int], Engine]] = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVINO}


def _singly(run: Engine, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """For a graph that takes one image alone."""
    found = [run(pixels[i : i + 1]) for i in range(len(pixels))]
    return [np.concatenate(layer) for layer in zip(*found, strict=True)]


def fingerprint(tensors: Mapping[str, Tensor], *settings: object) -> str:
    """Of a network: its parameters and what else decides what it makes of pixels; 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(settings).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
