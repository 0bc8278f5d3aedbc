"""The forward pass of a frozen network on another runtime than torch: the one home of which, and of how.

An extractor's own network is recorded once as an ONNX graph (`onnx_graph.py`), which ONNX Runtime and OpenVINO run.
Each is compared with torch on the first image that it sees, so the graph of another network is refused.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ArgumentError, log
from .extract import Extractor, RunPrecision
from .onnx_graph import quiet, record, require_packages

RuntimeName = Literal["torch", "onnxruntime", "openvino"]
RuntimeChoice = Literal["auto", "torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

TOLERANCE = 1e-4
"""Of the largest value of a layer's output, or of the largest score: by no more may float32 differ between runtimes."""

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_RECORDING = ("onnx", "onnxscript")
_ROUGH = 0.5
"""Of a layer's output, by its norm: what differs more is not the same network in another precision."""
_QUANTISED_ON = 64
"""Learned images whose activations set the ranges of int8."""
_UNSIGNED, _SIGNED = ".int8", ".vnni"
"""What the key of a network ends with whose weights have 8 bits without and with a sign."""
_FASTER = 0.95
"""Of torch's time: a runtime that takes more is not worth other last digits."""


Engine = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]
"""From `(batch, 3, height, width)` pixels in [0, 1] to the outputs of the taps."""


def require_runtime(choice: RuntimeChoice, *, recorded: bool = False) -> None:
    """Refuse a runtime that is not installed; `recorded`: its graphs are there. Raises `MissingPackageError`."""
    if choice in _EXTRAS:
        packages = (choice, *(() if recorded else _RECORDING))
        require_packages(packages, of=f"runtime {choice}", extra=_EXTRAS[choice])


def runtimes_at_hand() -> tuple[RuntimeName, ...]:
    """Those that are installed, torch first."""
    can_record = all(find_spec(name) is not None for name in _RECORDING)
    return ("torch", *(name for name in RUNTIMES[1:] if can_record and find_spec(name) is not None))


def require_precision(choice: RuntimeChoice, precision: RunPrecision) -> None:
    """Refuse a precision that a runtime, or this processor, does not have. Raises `ArgumentError`."""
    if precision == "bfloat16" and choice == "onnxruntime":
        raise ArgumentError.about("precision", expected="float32 or int8 with runtime onnxruntime", got=precision)
    if precision == "bfloat16" and choice == "openvino" and not _has_bfloat16():
        raise ArgumentError.about(
            "precision", expected="float32 or int8 on this processor, which has no bfloat16 for openvino", got=precision
        )
    if precision == "int8" and choice == "torch":
        raise ArgumentError.about(
            "precision", expected="float32 or bfloat16 with runtime torch", got=precision,
            instead="Take runtime onnxruntime, openvino or auto.",
        )  # fmt: skip


def import_onnxruntime() -> Any:
    """ONNX Runtime, which on Windows tells its maker how it is used, until it is asked not to."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def import_openvino() -> Any:
    """OpenVINO, which tells its maker that it was imported, unless the package that does so is not there."""
    sender = "openvino_telemetry"
    if sender in sys.modules:  # somebody else has imported it
        import openvino

        return openvino
    sys.modules[sender] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules[sender]
    return openvino


def _has_bfloat16() -> bool:
    found: list[str] = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in found


def has_vnni() -> bool:
    """Whether the processor adds products of bytes without overflow, so that weights may have a sign."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_vnni") or known.get("avx_vnni"))


def runtime_version(name: RuntimeName) -> str:
    return version(name)


class Runner:
    """Runs the frozen networks of a detector; its extractors share one, so that each network is recorded once.

    `name` is the runtime; with the choice `auto` it is None until the first images have come, on which those at hand
    are measured. `graphs` are the networks that were recorded, by the digest of their parameters and the input's size.
    With `int8`, `learn_ranges` must have seen images first.
    """

    def __init__(
        self, choice: RuntimeChoice, *, precision: RunPrecision = "float32", graphs: Mapping[str, bytes] | None = None
    ) -> None:
        require_runtime(choice, recorded=graphs is not None)
        require_precision(choice, precision)
        if precision == "int8" and graphs is None:
            require_packages(("onnxruntime", *_RECORDING), of="precision int8", extra="onnx")
        if any(key.endswith(_SIGNED) for key in graphs or ()) and not has_vnni():
            raise ArgumentError.about(
                "precision", expected="a processor with VNNI, as the one on which this model was fitted",
                got="int8 on one without", instead="Fit again on this one, or in float32.",
            )  # fmt: skip
        self.choice, self.precision = choice, precision
        self.name: RuntimeName | None = None if choice == "auto" else choice
        if choice == "auto" and precision == "bfloat16":  # nothing to measure: of the others, one alone has it
            self.name = "openvino" if "openvino" in runtimes_at_hand() and _has_bfloat16() else "torch"
        self.graphs: dict[str, bytes] = dict(graphs or {})
        self.records = True
        """Whether a network that is not among the graphs is recorded; else it is refused."""
        self.preparing = 0.0
        """Seconds that went into recording, comparing and measuring, and come once."""
        self._begin()

    def _begin(self) -> None:
        """With what was recorded, and nothing that runs."""
        self._inherited: list[object] = []
        self._engines: dict[tuple[str, RuntimeName, int], Engine] = {}
        self._compared: set[tuple[str, RuntimeName, int]] = set()
        self._lock = threading.RLock()

    def after_fork(self) -> None:
        """Begin anew in a forked process, which has none of its parent's threads; to free an engine waits for them."""
        inherited = [*self._inherited, self._engines]
        self._begin()
        self._inherited = inherited

    def __getstate__(self) -> dict[str, Any]:
        running = ("_engines", "_inherited", "_compared", "_lock")
        return {name: value for name, value in vars(self).items() if name not in running}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def maps(self, network: Extractor, pixels: Tensor) -> tuple[Tensor, ...] | None:
        """The outputs of the taps for a few images; None where torch shall make them."""
        if self.name == "torch":
            return None
        with self._lock:
            start = perf_counter()
            name = self.name or self._choose(network, pixels)
            engine = None if name == "torch" else self._engine(network, pixels, name)
            self.preparing += perf_counter() - start
            return None if engine is None else tuple(torch.from_numpy(found) for found in engine(_plain(pixels)))

    def _choose(self, network: Extractor, pixels: Tensor) -> RuntimeName:
        """Measure the runtimes at hand on these images, and take the fastest one from now on."""
        if not network.is_plain:
            self.name = "torch"
            return self.name
        runs: dict[RuntimeName, Callable[[], object]] = {}
        if self.precision == "float32":
            runs["torch"] = lambda: network.maps(pixels)
        for name in runtimes_at_hand()[1:]:
            try:
                engine = self._engine(network, pixels, name)
            except ArgumentError as error:
                log.info("runtime %s: passed over. %s", name, error)
                continue
            runs[name] = lambda engine=engine: engine(_plain(pixels))  # type: ignore[misc]
        if not runs:
            require_runtime("onnxruntime")  # says what is missing
        times = _times(runs)
        best = min(times, key=lambda name: times[name] * (_FASTER if name == "torch" else 1))
        self.name = best
        told = ", ".join(f"{name} {1e3 * seconds / len(pixels):.1f}" for name, seconds in times.items())
        log.info("runtime %s: ms an image of the network were %s", best, told)
        return best

    def _engine(self, network: Extractor, pixels: Tensor, name: RuntimeName) -> Engine:
        """What runs this network, compared with torch when it is made."""
        key = self._key(network, pixels)
        known = key, name, torch.get_num_threads()
        if known not in self._engines:
            if key not in self.graphs and self.precision == "int8":
                raise ArgumentError.about(
                    "precision", expected="float32 for images of another size than those of the fit", got="int8"
                )
            if key not in self.graphs and not self.records:
                raise ArgumentError.about(
                    "runtime", expected=f"the graph of its network for {pixels.shape[2]} x {pixels.shape[3]} pixels",
                    got="none, or that of another network or size",
                )  # fmt: skip
            if key not in self.graphs:
                self.graphs[key] = self._recorded(network, pixels)
            self._engines[known] = _ENGINES[name](self.graphs[key], known[2], self.precision)
        exactly, one = self.precision == "float32", pixels[:1]
        # Of a picture of one colour, less precision leaves little that could be compared.
        if known not in self._compared and (exactly or bool(one.amax((2, 3)).gt(one.amin((2, 3))).any())):
            _require_same(network, self._engines[known], one, name, exactly=exactly)
            self._compared.add(known)
        return self._engines[known]

    def _recorded(self, network: Extractor, pixels: Tensor) -> bytes:
        log.info("recording the network for runtime %s, once", self.choice)
        return _record(network, (pixels.shape[2], pixels.shape[3]))

    def _key(self, network: Extractor, pixels: Tensor) -> str:
        whole = f"{network.fingerprint()}.{pixels.shape[2]}x{pixels.shape[3]}"
        if self.precision != "int8":
            return whole
        known = [whole + kind for kind in (_SIGNED, _UNSIGNED) if whole + kind in self.graphs]
        return known[0] if known else whole + (_SIGNED if has_vnni() else _UNSIGNED)

    def learn_ranges(self, network: Extractor, batches: Iterable[Tensor]) -> None:
        """With `int8`: quantise the network, whose activations take their ranges from the first learned images."""
        if self.precision != "int8":
            return
        start, seen = perf_counter(), list(_first(batches, _QUANTISED_ON))
        if seen:
            with self._lock:
                log.info("quantising the network to int8 on %d learned images", sum(map(len, seen)))
                key = self._key(network, seen[0])
                graph = self._recorded(network, seen[0])
                self.graphs[key] = _quantised(graph, seen, signed=key.endswith(_SIGNED))
                self.preparing += perf_counter() - start


def _first(batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Whole batches, of `count` images at least where there are so many."""
    for batch in batches:
        yield batch
        count -= len(batch)
        if count <= 0:
            return


def _plain(pixels: Tensor) -> NDArray[np.float32]:
    return pixels.contiguous().numpy()


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

    def __init__(self, network: Extractor) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self._network.maps(pixels)


def _record(network: Extractor, size: tuple[int, int]) -> bytes:
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


def _quantised(graph: bytes, pixels: list[Tensor], *, signed: bool) -> bytes:
    """The graph with weights and activations of 8 bits, by ONNX Runtime's quantiser; weights have a range a channel.

    Signed weights are what VNNI multiplies, twice as fast; processors without it overflow where they are large.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load_from_string(graph).graph.input[0].name

    class Shown(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._coming = iter(pixels)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            found = next(self._coming, None)
            return None if found is None else {name: _plain(found)}

    with tempfile.TemporaryDirectory() as folder, quiet():
        whole, prepared, made = (str(Path(folder, f"{step}.onnx")) for step in ("whole", "prepared", "made"))
        Path(whole).write_bytes(graph)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared, made, Shown(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
        )  # fmt: skip
        return Path(made).read_bytes()


def _require_same(network: Extractor, engine: Engine, pixels: Tensor, name: RuntimeName, *, exactly: bool) -> None:
    """Refuse a graph that makes something else of an image than torch does; else of another precision: roughly."""
    theirs = engine(_plain(pixels))
    for tap, our, their in zip(network.taps, network.maps(pixels), theirs, strict=True):
        found = torch.from_numpy(their)
        if our.shape == found.shape:
            away = (our - found).abs().max() if exactly else (our - found).norm()
            largest = (our.abs().max() if exactly else our.norm()).clamp_min(1e-6)
            if bool(away <= (TOLERANCE if exactly else _ROUGH) * largest):
                continue
        raise ArgumentError.about(
            "runtime", expected=f"outputs of {network.backbone.name} within {TOLERANCE if exactly else _ROUGH:g} of "
            "torch's", got=f"other ones by {name} at tap {tap}", instead="Use runtime torch.",
        )  # fmt: skip


class _OnnxRuntime:
    """A graph on ONNX Runtime."""

    def __init__(self, graph: bytes, threads: int, precision: RunPrecision) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Its threads would turn in a circle until the next picture, on the cores that torch's score needs meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Else a graph that is damaged is tried twice, and said on stdout, where lines of JSON go.
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (given,) = self._session.get_inputs()
        self._input, self._one = given.name, given.shape[0] == 1

    def __call__(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return _singly(self._run, pixels) if self._one else self._run(pixels)

    def _run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self._session.run(None, {self._input: pixels})
        return found


class _OpenVINO:
    """A graph on OpenVINO."""

    def __init__(self, graph: bytes, threads: int, precision: RunPrecision) -> None:
        core = import_openvino().Core()
        model = core.read_model(graph)
        floats = "bf16" if precision == "bfloat16" else "f32"
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": floats, "INFERENCE_NUM_THREADS": threads}
        self._one = model.inputs[0].partial_shape[0].is_static
        self._model = core.compile_model(model, "CPU", hints)

    def __call__(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return _singly(self._run, pixels) if self._one else self._run(pixels)

    def _run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(self._model([pixels]).values())


_ENGINES: dict[RuntimeName, Callable[[bytes, int, RunPrecision], Engine]] = {
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVINO,
}


def _singly(run: Engine, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """For a graph that takes one image alone."""
    found = [run(pixels[i : i + 1]) for i in range(len(pixels))]
    return [np.concatenate(layer) for layer in zip(*found, strict=True)]
