"""The models of a station: a table of names and files, loaded when they are asked for, within a bound of memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..detector import Detector
from ..errors import ArgumentError, BlemishError, NotEnoughMemoryError, log
from ..features.runtime import RuntimeChoice
from ..images.decode import MAX_PIXELS
from ..memory import spell_bytes
from ..ops.neighbours import IndexFactory
from ..report.lines import model_digest
from .guard import Refusal

HELD_PER_BYTE = 2
"""Memory that a loaded model is counted with, as a multiple of its file: tensors, and what scoring makes of them."""


@dataclass(frozen=True)
class Loaded:
    """One version of a model, as it was read from its file."""

    name: str
    detector: Detector
    digest: str
    """As in the lines of `predict`."""
    state: tuple[int, int]
    """Size and time of the file, which change with it."""

    @property
    def held(self) -> int:
        """Bytes of memory that it counts."""
        return HELD_PER_BYTE * self.state[0]


class Models:
    """Names and files of models; `get` loads them.

    Parameters
    ----------
    files: the table. No name that is not in it ever reaches a file.
    max_bytes: of all loaded models, as `Loaded.held` counts; those that were not asked for the longest are dropped.
    device, runtime, make_index: as in `Detector.load`.
    batch, max_pixels: as in `Limits`.

    A file that was replaced is loaded beside the old model, which answers until the new one is there; a file that
    cannot be read leaves the old one, and `fault` says why.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        max_bytes: int,
        device: str = "auto",
        runtime: RuntimeChoice | None = None,
        make_index: Callable[[str], IndexFactory] | None = None,
        batch: int = 8,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._files = dict(files)
        self._max_bytes, self._device, self._runtime, self._make_index = max_bytes, device, runtime, make_index
        self._batch, self._max_pixels = batch, max_pixels
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._coming: dict[str, Future[None]] = {}
        self._faults: dict[str, str] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="blemish-models")

    def close(self) -> None:
        """Wait for what is being loaded."""
        self._pool.shutdown(cancel_futures=True)

    def names(self) -> list[str]:
        """All that can be asked for, loaded or not."""
        with self._lock:
            return list(self._files)

    def loaded(self) -> dict[str, Loaded]:
        """Those that are in memory."""
        with self._lock:
            return dict(self._loaded)

    def fault(self, name: str) -> str | None:
        """Why the file of a model could not be read the last time; None where it could."""
        with self._lock:
            return self._faults.get(name)

    def path(self, name: str) -> Path:
        """The file of a model. Raises `KeyError`."""
        with self._lock:
            return self._files[name]

    def require(self, name: str) -> None:
        """Raise `Refusal` (404) for a name that is not in the table."""
        if name not in self.names():
            raise Refusal(404, "There is no model of this name; GET /v1/models names them.")

    def put(self, name: str, path: Path) -> None:
        """Let a name stand for another file, from the next request on, or as a replaced one where it cannot be read."""
        with self._lock:
            self._files[name] = path
            is_loaded = name in self._loaded
        if is_loaded:
            self._reload(name, path, _state(path) or (0, 0))

    def get(self, name: str) -> Loaded:
        """The model of a name, loaded where it is not. Raises `KeyError` for a name that is not in the table.

        Raises what `Detector.load` raises where there is no older version that could answer, and
        `NotEnoughMemoryError` where it alone is above the bound.
        """
        known = self.known(name)
        if known is not None:
            return known
        with self._loading:  # one at a time, and nobody who asks for a loaded one waits for it
            known = self.loaded().get(name)
            return self._load(name, self.path(name)) if known is None else known

    def known(self, name: str) -> Loaded | None:
        """The model of a name if it is loaded, without waiting; a changed file is loaded in the background."""
        with self._lock:
            known = self._loaded.get(name)
            if known is not None:
                self._loaded.move_to_end(name)
                self._renew(known, self._files[name])
            return known

    def read(self, name: str) -> Loaded:
        """The model of a name from its file, beside the one that answers. Raises what `get` raises."""
        return self._read(name, self.path(name))

    def settle(self) -> None:
        """Wait until replaced files that were noticed are loaded."""
        for coming in list(self._coming.values()):
            coming.result()

    def _renew(self, known: Loaded, path: Path) -> None:
        """Load a changed file in the background, once."""
        coming, state = self._coming.get(known.name), _state(path)
        if state == known.state or (coming is not None and not coming.done()):
            return
        if state is None:
            self._faults[known.name] = f"{path}: the file is gone; the model in memory answers on."
            return
        self._coming[known.name] = self._pool.submit(self._reload, known.name, path, state)

    def _reload(self, name: str, path: Path, state: tuple[int, int]) -> None:
        try:
            self._keep(self._read(name, path))
        except (BlemishError, OSError) as error:
            with self._lock:
                self._faults[name] = str(error)
                known = self._loaded.get(name)
                if known is not None:  # not again, until the file changes once more
                    self._loaded[name] = Loaded(name, known.detector, known.digest, state)
            log.warning("%s: the model in memory answers on. %s", name, error)

    def _load(self, name: str, path: Path) -> Loaded:
        try:
            return self._keep(self._read(name, path))
        except (BlemishError, OSError) as error:
            with self._lock:
                self._faults[name] = str(error)
            raise

    def _read(self, name: str, path: Path) -> Loaded:
        state = _state(path)
        if state is not None and HELD_PER_BYTE * state[0] > self._max_bytes:
            raise NotEnoughMemoryError(
                f"{path}: counts {spell_bytes(HELD_PER_BYTE * state[0])} in memory, the bound is "
                f"{spell_bytes(self._max_bytes)}. Allow more with --memory."
            )
        detector = Detector.load(path, device=self._device, make_index=self._make_index, runtime=self._runtime)
        if detector.region_ is not None and not detector.region_.is_one:
            raise ArgumentError.about(
                name, expected="a model with one region of interest, or none", got="one with a region for each picture"
            )
        detector.on_error, detector.batch_size, detector.workers = "skip", self._batch, 2
        detector.max_pixels = self._max_pixels
        return Loaded(name, detector, model_digest(path), state or (0, 0))

    def _keep(self, loaded: Loaded) -> Loaded:
        with self._lock:
            self._loaded[loaded.name] = loaded
            self._loaded.move_to_end(loaded.name)
            self._faults.pop(loaded.name, None)
            while sum(other.held for other in self._loaded.values()) > self._max_bytes and len(self._loaded) > 1:
                name, _ = self._loaded.popitem(last=False)
                log.info("%s: dropped from memory until it is asked for again", name)
        return loaded


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
