"""Feature maps of images, computed once and read by many fits and scorings."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ArgumentError, NotEnoughMemoryError
from ..files import sweep_folders
from ..images.preprocess import Preprocess
from ..images.source import Batches, Reporting
from ..memory import spell_bytes
from ..types import ImageBatch, Size

_PREFIX = "blemish-features-"


class FeatureMemory:
    """Feature maps by image name, for as many images as announced; the same numbers, and the same layout, come back.

    Parameters
    ----------
    backbone, precision: of the network that makes the maps.
    preprocess: how the images were prepared for it.
    images: how many will come at most.
    budget: bytes that may be held in memory; None: any number. More go to a memory-mapped file in `folder` (None: the
        system's folder for temporary files).
    """

    def __init__(
        self,
        *,
        backbone: str,
        preprocess: Preprocess,
        images: int,
        precision: str = "float32",
        budget: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.backbone, self.precision, self.preprocess = backbone, precision, preprocess
        self.on_disk = False
        self._images, self._budget, self._folder = images, budget, folder
        self._rows: dict[str, int] = {}
        self._sizes: list[Size] = []
        self._inside: list[Tensor] = []
        """The region of interest of each image; empty without one."""
        self._maps: dict[str, Tensor] = {}
        """By tap `(images, h, w, channels)`, or `(images, channels, h, w)` where the network's maps lie like that."""
        self._channels_last: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    @property
    def bytes(self) -> int:
        """Size of all that was set aside, in memory or on disk."""
        return sum(maps.numel() * maps.element_size() for maps in self._maps.values())

    def add(self, batch: ImageBatch, maps: Mapping[str, Tensor]) -> None:
        """Remember the maps of a batch, by tap; each image once."""
        start, end = len(self), len(self) + len(batch)
        if end > self._images or len({*self._rows, *batch.names}) < end:
            raise ArgumentError.about("images", expected=f"{self._images} different ones", got=", ".join(batch.names))
        if not self._maps:
            self._set_aside(maps)
        for tap, kept in self._maps.items():
            new = maps[tap]
            kept[start:end] = new.permute(0, 2, 3, 1) if self._channels_last[tap] else new
        self._sizes += batch.sizes
        self._inside += [] if batch.inside is None else [*batch.inside]
        self._rows |= {name: start + i for i, name in enumerate(batch.names)}

    def batch(self, names: Sequence[str]) -> ImageBatch:
        """Images by name, with their maps; the pixels are NaN, so that what reads them after all gives no score."""
        rows = torch.tensor([self._rows[name] for name in names])
        pixels = torch.full((1, 1, 1, 1), torch.nan).expand(len(rows), 3, *self.preprocess.size)
        features = {}
        for tap, kept in self._maps.items():
            chosen = kept[rows]
            features[tap] = chosen.permute(0, 3, 1, 2) if self._channels_last[tap] else chosen
        inside = torch.stack([self._inside[row] for row in rows.tolist()]) if self._inside else None
        return ImageBatch(pixels, tuple(names), tuple(self._sizes[row] for row in rows.tolist()), features, inside)

    def _set_aside(self, maps: Mapping[str, Tensor]) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for tap, new in maps.items():
            # Operators choose their order of summation by the layout, so another one would give other last digits.
            self._channels_last[tap] = new.stride(1) == 1
            layout = new.permute(0, 2, 3, 1) if self._channels_last[tap] else new
            shapes[tap] = (self._images, *layout.shape[1:])
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        self.on_disk = self._budget is not None and 4 * sum(sizes) > self._budget
        whole = self._mapped(sum(sizes)) if self.on_disk else torch.empty(sum(sizes))
        parts = whole.split(sizes)  # type: ignore[no-untyped-call]
        self._maps = {tap: part.view(shape) for (tap, shape), part in zip(shapes.items(), parts, strict=True)}

    def _mapped(self, numbers: int) -> Tensor:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._folder))
        sweep_folders(folder.parent, _PREFIX)
        free = shutil.disk_usage(folder).free
        try:
            if 4 * numbers > 0.9 * free:
                raise NotEnoughMemoryError(
                    f"features of {self._images} images: {spell_bytes(4 * numbers)}, more than the memory for them and "
                    f"the {spell_bytes(free)} left in {folder.parent}. Read fewer taps, or set TMPDIR to a larger disk."
                )
            return torch.from_file(str(folder / "maps"), shared=True, size=numbers)
        finally:
            # The space is free again as soon as nothing maps the file, also after a kill; on Windows it is swept later.
            shutil.rmtree(folder, ignore_errors=True)


class Remembering:
    """Batches that bring the maps which `mapped` makes of them, and keep these in a memory for the next pass.

    Where they do not fit there, they are passed on alone, and the memory stays empty.
    """

    def __init__(
        self, batches: Batches | Reporting, mapped: Callable[[ImageBatch], ImageBatch], memory: FeatureMemory
    ) -> None:
        self._batches, self._mapped, self._memory, self._fits = batches, mapped, memory, True

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self._batches:
            seen = self._mapped(batch)
            if self._fits and seen.features is not None and seen.names[0] not in self._memory:
                try:
                    self._memory.add(seen, seen.features)
                except NotEnoughMemoryError:
                    self._fits = False
            yield seen
