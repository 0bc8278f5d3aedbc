"""PatchCore: distance to a coreset of normal patches (Roth et al., "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022).

Each position of the feature maps, averaged with its 3 x 3 neighbours, is one patch. A greedy k-centre coreset of all
normal patches is the bank. The anomaly map is the distance of each patch to its nearest one in the bank; the image
score is the mean of the highest 1 %, or the largest, re-weighted by equation 7 where wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ArgumentError, ModelFileError, log
from ..features.backbones import Backbone
from ..features.patches import (
    average_patches,
    cells_inside,
    gaussian_projection,
    single_patches,
    unfolded_patches,
    unfolding_kernels,
)
from ..ops.coreset import CoresetStream, reducing_capacity
from ..ops.forget import without_rows
from ..ops.maps import enlarge_and_smooth
from ..ops.neighbours import Exact, ExactIndex, Index, IndexFactory, Storage, recall
from ..parameters import count_of, parameter
from ..progress import Throttle
from ..tensors import check_tensors
from ..types import FeatureMaps, ImageBatches, Scores
from ._base import FitPlan, LeavingMethod, MapMethod, one_by_one
from ._turned import TurnedMethod

_ERROR_PATCHES = 2048
_MOVED_PATCHES = 4096
_UNKNOWN_CAPACITY = 1_000_000
_SHARE, _LEAST = 0.01, 2000
"""Share of all patches, and patches at least, where nobody says: 1 % of few images misses much of what is normal."""
_HIGHEST = 0.01
"""Share of the distances behind the score of an image, where nobody says."""
_NUMBERS = ("seen", "radius", "reserve_radius", "storage_error", "recall")
"""Names of the learned tensors that are one number each."""
_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(kw_only=True)
class PatchCore(MapMethod, TurnedMethod, LeavingMethod):
    """Distance to a coreset of normal patches, wherever they lie. The most accurate of the untrained methods.

    Parameters
    ----------
    patches: `average` of the 3 x 3 neighbours, layers concatenated; `single` positions, likewise; or `unfold`, the
        published code's embedding of `dimensions` numbers.
    dimensions: of an embedding with `unfold` (the paper: 1024).
    normalise: scale each patch's vector to length 1; the square of a distance is then twice the cosine distance.
    ratio: share of all patches to keep (the paper: 0.25, 0.1 or 0.01); None: 0.01, and 2 000 patches at least.
    count: keep so many patches instead.
    radius: keep no more once every patch lies this near to a kept one, in the projected space; 0: no such limit.
        How near they are in the end is `radius_`.
    projection: dimensions of the random projection in which the coreset is chosen (the paper's code: 128); 0: none.
    starts: begin with the mean distance to so many random patches, as the paper's code does with 10; 0: do not.
    reweight: neighbours b of equation 7 for the image score, the largest distance then; 0: no weight. All of a bank
        that `radius` made smaller.
    squared: scores are squared distances, as in the paper's code.
    top_share: share of the distances whose mean, of the highest ones, is the score of an image; 0, and with `reweight`:
        the largest alone.
    sigma: smoothing of the map, in pixels of the network's input (the paper: 4).
    reserve: patches to keep, in int8, for each one in the bank: `partial_fit` and `merge` choose the new bank from
        them and the new patches. 0: from the bank alone, which is a worse choice.
    storage: of the bank; `storage_error_` then holds the largest change of a patch distance, relative to their mean.
    index: what searches the bank, such as `blemish.edges.faiss.Faiss('ivf256')`; None searches all of it.
    """

    name: ClassVar[str] = "patchcore"
    paper: ClassVar[dict[str, object]] = {
        "patches": "unfold", "ratio": 0.1, "starts": 10, "squared": True, "top_share": 0.0,
    }  # fmt: skip
    exact_update: ClassVar[bool] = False
    larger_pays: ClassVar[bool] = True

    patches: Literal["average", "single", "unfold"] = "average"
    dimensions: int = parameter(1024, at_least=1)
    normalise: bool = False
    ratio: float | None = parameter(None, above=0, at_most=1)
    count: int | None = parameter(None, at_least=1)
    radius: float = parameter(0.0, at_least=0)
    projection: int = parameter(128, at_least=0, at_most=8192)
    starts: int = parameter(0, at_least=0)
    reweight: int = parameter(0, at_least=0)
    squared: bool = False
    top_share: float = parameter(_HIGHEST, at_least=0, at_most=1)
    sigma: float = parameter(4.0, at_least=0)
    reserve: int = parameter(16, at_least=0)
    storage: Storage = "float32"
    index: IndexFactory | None = parameter(None, option=True)

    def unproven(self, groups: Sequence[int]) -> str:
        """Distances to the nearest of fewer patches can only grow, where nothing else depends on an image."""
        reasons = {
            "the coreset is chosen in view of every image": self.ratio != 1
            or self.count is not None
            or self.radius > 0,
            f"storage={self.storage} is scaled by all images": self.storage != "float32",
            "reweight may lower a score": self.reweight > 0,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _cannot(self, groups: Sequence[int]) -> str:
        return "an index of its own" if self.index is not None else ""

    def _left_out(self, features: FeatureMaps, members: Sequence[Tensor]) -> Scores:
        return one_by_one(features, members, self._without)

    def _without(self, members: Tensor, features: FeatureMaps) -> PatchCore:
        """The bank without the images' own patches; a coreset is not chosen again."""
        if self.owners_ is None:
            raise ArgumentError.about("left_out", expected="the model that a fit has just made", got="another one")
        rows = torch.isin(self.owners_, members)
        if bool(rows.all()):
            raise ArgumentError.about("images", expected="patches of several images in the bank", got="those of one")
        model = copy.copy(self)
        assert isinstance(self.bank_, ExactIndex)
        model.bank_ = self.bank_.without(rows.to(features.maps[0].device))
        return model

    def _images(self, first: FeatureMaps) -> int:
        return self.seen_ // (first.maps[0].shape[2] * first.maps[0].shape[3])

    def _learn_more(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        """Choose the bank again, from the reserve and the new patches; `radius_` bounds how near it is to all seen."""
        self._learn_from(features, expected=expected, old=self._reserved())

    def _absorb(self, other: PatchCore) -> None:
        """Choose the bank again, from both reserves; `radius_` bounds how near it is to all that either has seen."""
        for name in ("channels_", "patches", "dimensions", "normalise", "projection", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise ArgumentError.about(
                    "other", expected=f"a PatchCore with {name} {getattr(self, name)}", got=getattr(other, name)
                )
        (mine, radius), (theirs, other_radius) = self._reserved(), other._reserved()
        both = len(mine) + len(theirs)
        stream = CoresetStream(both, mine.shape[1], total=both, wanted=both, project=self._project, like=mine)
        stream.add_coreset(torch.cat([mine, theirs]), max(radius, other_radius))
        self._finish(stream, self.seen_ + other.seen_)

    def drop_reserve(self) -> None:
        """Grow from the bank alone from now on, which is a worse choice, in a smaller file."""
        self._require_fit("drop_reserve")
        self.reserve_: ExactIndex | None = None
        self.reserve_radius_ = 0.0

    def _reserved(self) -> tuple[Tensor, float]:
        """What to go on from, and the radius within which it covers all seen patches."""
        if self.reserve_ is None:
            return self.bank_.vectors(), self.radius_
        return self.reserve_.vectors(), self.reserve_radius_

    def _check_together(self) -> None:
        if self.index is not None and self.storage != "float32":
            raise ArgumentError.about("storage", expected="float32 with an index of your own", got=self.storage)
        if self.reweight == 1:
            raise ArgumentError.about("reweight", expected="0, or at least 2 neighbours", got=1)
        if self.reweight and self.top_share not in (0, _HIGHEST):  # the default: nobody said so
            raise ArgumentError.about(
                "top_share", expected="0 with reweight, which is of one patch", got=self.top_share
            )

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps[-2:]

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        positions = first.maps[0].shape[2] * first.maps[0].shape[3]
        d = self.dimensions if self.patches == "unfold" else sum(m.shape[1] for m in first.maps)
        total = images * positions
        self._check_counts(total)
        kept = self._wanted(total)
        self._factory().check(d, kept)
        # Merge and reduce keeps a part of the buffer for new patches, and the rest must hold the bank.
        capacity = max(self._capacity(total, d, kept), min(total, 4 * kept // 3))
        return FitPlan(
            model_bytes=kept * d * _BYTES[self.storage] + self._reserve_bytes(total, d, kept),
            peak_bytes=capacity * self._bytes_a_patch(d) + self._kept_bytes(total, d, kept),
            operations=2.0 * capacity * kept * (self.projection or d) * (total / capacity) ** 0.5,
            instead=f"Keep fewer patches than {kept} (ratio, count), or give more memory_gb.",
        )

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        first = next(features)
        self.channels_ = tuple(m.shape[1] for m in first.maps)
        self._prepare()
        self.seen_, self.radius_ = 0, 0.0
        self._learn_from(chain([first], features), expected=expected, old=None)

    def _learn_from(
        self, features: Iterator[FeatureMaps], *, expected: int | None, old: tuple[Tensor, float] | None
    ) -> None:
        first = next(features)
        patches = self._embed(first)
        kept = 0 if old is None else len(old[0])
        new = None if expected is None else expected * patches.shape[1]
        total = None if new is None else new + kept
        wanted = self._wanted(self.seen_ + (new or _UNKNOWN_CAPACITY))
        stream = CoresetStream(
            max(self._capacity(total, patches.shape[2], wanted), 2 * kept),
            patches.shape[2],
            total=total,
            wanted=wanted,
            project=self._project,
            like=patches,
        )
        if old is not None:
            stream.add_coreset(*old)
        seen = self.seen_
        counts: list[int] = []
        for maps in chain([first], features):
            patches, cells = self._patches(maps)
            images = len(maps.maps[0])
            counts += [len(patches) // images] * images if cells is None else cells.flatten(1).sum(dim=1).tolist()
            stream.add(patches)
            seen += len(patches)
        self._finish(stream, seen, counts if old is None else None)

    def _patches(self, features: FeatureMaps) -> tuple[Tensor, Tensor | None]:
        """Those in the region of interest, or what fills the outside would be normal anywhere; and which these are."""
        patches, cells = self._embed(features).flatten(0, 1), cells_inside(features, features.maps[0].shape[2:])
        return patches if cells is None else patches[cells.flatten()], cells

    def _finish(self, stream: CoresetStream, seen: int, counts: list[int] | None = None) -> None:
        """Choose the bank; `counts` says how many patches each image has brought, where none came from elsewhere."""
        self._check_counts(seen)
        typical = stream.midpoints(_ERROR_PATCHES, seed=self.seed) if self._is_approximate() else None
        throttle = Throttle()

        def report(chosen: int, wanted: int) -> None:
            if throttle.is_due():
                log.info("coreset: %d/%d patches", chosen, wanted)

        vectors, radius = stream.finish(
            self._wanted(seen), radius=self.radius, starts=self.starts, seed=self.seed, progress=report
        )
        reserve, reserve_radius = None, 0.0
        if self.reserve and len(vectors) < seen:
            chosen, reserve_radius = stream.reserve(self.reserve * len(vectors))
            reserve = Exact("int8").build(chosen)
            reserve_radius += self._moved(chosen, reserve)
        bank = self._factory().build(vectors)
        self.storage_error_, self.recall_ = 0.0, 1.0
        if typical is not None:
            self.storage_error_, self.recall_ = _compare(bank, Exact().build(vectors), typical)
            radius += self._moved(vectors, bank)
        self.bank_, self.radius_, self.seen_ = bank, radius, seen
        self.owners_ = (
            None if counts is None else torch.bucketize(stream.chosen, torch.tensor(counts).cumsum(0), right=True)
        )
        self.reserve_, self.reserve_radius_ = reserve, reserve_radius

    def _moved(self, vectors: Tensor, bank: Index) -> float:
        """How far compression moves the vectors at most, and with them what they cover."""
        rows = torch.arange(len(vectors), device=vectors.device)
        return max(
            float(torch.linalg.vector_norm(self._project(bank.vectors(part) - vectors[part]), dim=1).max())
            for part in rows.split(_MOVED_PATCHES)  # type: ignore[no-untyped-call]
        )

    def forget(self, images: ImageBatches) -> PatchCore:
        """Unlearn images that come again, from a bank of all patches: exactly a fit without them.

        A coreset is refused: what it left out because a forgotten patch was near is not there any more.
        """
        self._require_fit("forget")
        if len(self.bank_) != self.seen_ or self._is_approximate():
            raise ArgumentError.about(
                "ratio", expected="1, with storage float32 and no index, to forget images",
                got=f"a bank of {len(self.bank_)} of {self.seen_} patches", instead="Fit again without them.",
            )  # fmt: skip
        forgotten = torch.cat([self._patches(maps)[0] for maps in self._features(images)])
        if len(forgotten) >= self.seen_:
            raise ArgumentError.about("images", expected="at least one to remain", got="none")
        self.bank_ = self._factory().build(without_rows(self.bank_.vectors(), forgotten))
        self.seen_, self.owners_ = len(self.bank_), None
        return self

    def _score(self, features: FeatureMaps) -> Scores:
        size = features.maps[0].shape[2:]
        patches = self._embed(features)
        squared, nearest = self.bank_.search(patches.flatten(0, 1), 1)
        distances = squared if self.squared else squared.sqrt()
        grid = distances.reshape(-1, *size)
        cells = cells_inside(features, size)
        maps = enlarge_and_smooth(grid, features.image_size, sigma=self.sigma, inside=cells)
        if not self.reweight:
            return Scores(self._image_scores(grid, cells), maps)
        within = grid if cells is None else grid.masked_fill(~cells, -torch.inf)
        largest, worst = within.flatten(1).max(dim=1)
        image = torch.arange(len(worst), device=worst.device)
        return Scores(
            largest * self._weights(patches[image, worst], nearest.reshape(len(worst), -1)[image, worst]), maps
        )

    def _weights(self, patches: Tensor, nearest: Tensor) -> Tensor:
        """Equation 7: small where the nearest bank patch is itself in a dense neighbourhood; `(batch,)`."""
        if len(self.bank_) < 2:
            return torch.ones(len(patches), device=patches.device)
        _, neighbours = self.bank_.search(self.bank_.vectors(nearest), min(self.reweight, len(self.bank_)))
        around = torch.stack([self.bank_.vectors(row) for row in neighbours])
        distances = torch.linalg.vector_norm(around - patches[:, None], dim=2)
        to_nearest = torch.linalg.vector_norm(self.bank_.vectors(nearest) - patches, dim=1)
        return 1 - torch.exp(to_nearest - torch.logsumexp(distances, dim=1))

    def _learned(self) -> dict[str, Tensor]:
        reserve = {} if self.reserve_ is None else self.reserve_.state()
        return (
            self.bank_.state()
            | {f"reserve.{name}": value for name, value in reserve.items()}
            | {
                "reserve_radius": torch.tensor(self.reserve_radius_, dtype=torch.float64),
                "channels": torch.tensor(self.channels_),
                "seen": torch.tensor(self.seen_),
                "radius": torch.tensor(self.radius_, dtype=torch.float64),
                "storage_error": torch.tensor(self.storage_error_, dtype=torch.float64),
                "recall": torch.tensor(self.recall_, dtype=torch.float64),
            }
        )

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        self.bank_, self.owners_ = self._factory().restore(learned), None
        self._check_learned(learned)
        self.channels_ = tuple(learned["channels"].tolist())
        self._prepare()
        self.seen_, self.radius_ = int(learned["seen"]), float(learned["radius"])
        self.storage_error_, self.recall_ = float(learned["storage_error"]), float(learned["recall"])
        reserve = {k.removeprefix("reserve."): v for k, v in learned.items() if k.startswith("reserve.")}
        self.reserve_ = Exact("int8").restore(reserve) if reserve else None
        self.reserve_radius_ = float(learned["reserve_radius"])

    def _check_learned(self, learned: dict[str, Tensor]) -> None:
        """Refuse, before anything is made of them, tensors that do not go together."""
        own = {name: value for name, value in learned.items() if name in _NUMBERS or name == "channels"}
        check_tensors(own, dict.fromkeys(_NUMBERS, "float64") | {"seen": "int64", "channels": "int64 maps"})
        side = self.extractor_.backbone.trace_size
        with self.extractor_.on_torch():  # at a size that no runtime needs to know
            channels = [m.shape[1] for m in self.extractor_(torch.zeros(1, 3, side, side)).maps]
        if learned["channels"].tolist() != channels:
            raise ModelFileError.about("tensor channels", expected=f"{channels}", got=learned["channels"].tolist())
        d, dimension = self._dimension(channels), self.bank_.vectors(torch.tensor([0])).shape[1]
        if d != dimension or learned.get("reserve.centre", torch.zeros(d)).shape != (d,):
            raise ModelFileError.about("tensor bank", expected=f"vectors of {d} numbers", got=dimension)
        if int(learned["seen"]) < len(self.bank_):
            raise ModelFileError.about("tensor seen", expected=f"at least {len(self.bank_)}", got=int(learned["seen"]))

    def _dimension(self, channels: Sequence[int]) -> int:
        return self.dimensions if self.patches == "unfold" else sum(channels)

    def _prepare(self) -> None:
        """Make what follows from the parameters and the channels of the taps."""
        device = self._device()
        d = self._dimension(self.channels_)
        self._kernels: list[tuple[int, Tensor]] = []
        if self.patches == "unfold":
            kernels = unfolding_kernels(self.channels_, d)
            self._kernels = [(start, kernel.to(device)) for start, kernel in kernels]
        self._matrix = gaussian_projection(d, self.projection, seed=self.seed).to(device) if self.projection else None

    def _embed(self, features: FeatureMaps) -> Tensor:
        if self.patches == "unfold":
            patches = unfolded_patches(features, self._kernels, self.dimensions)
        else:
            patches = average_patches(features) if self.patches == "average" else single_patches(features)
        return normalize(patches, dim=2) if self.normalise else patches

    def _project(self, patches: Tensor) -> Tensor:
        return patches if self._matrix is None else patches @ self._matrix

    def _factory(self) -> IndexFactory:
        return self.index or Exact(self.storage)

    def _is_approximate(self) -> bool:
        return self.index is not None or self.storage != "float32"

    def _check_counts(self, total: int) -> None:
        patches = "the patches of the images"
        if self.count is not None:
            count_of(self, "count", total, patches)
        count_of(self, "starts", total, patches)
        count_of(self, "reweight", self._wanted(total), "the patches of the bank")

    def _wanted(self, total: int) -> int:
        if self.count is not None:
            return min(total, self.count)
        share, least = (_SHARE, _LEAST) if self.ratio is None else (self.ratio, 1)
        return max(round(share * total), min(total, least))

    def _capacity(self, total: int | None, d: int, wanted: int) -> int:
        """Patches that a fit may hold at once."""
        left = self._memory_left()
        if left is None:
            return _UNKNOWN_CAPACITY if total is None else total
        if total is None:
            return max(2, min(_UNKNOWN_CAPACITY, left // 2 // self._bytes_a_patch(d)))
        kept = self._kept_bytes(total, d, wanted)
        fitting = (left - kept) // self._bytes_a_patch(d)
        return total if fitting >= total else max(2, min(fitting, reducing_capacity(wanted)))

    def _kept_bytes(self, total: int, d: int, wanted: int) -> int:
        """Bank and reserve, as they are stored and, where they are chosen, in float32."""
        copied = 5 if self.reserve * wanted < total else 1
        return wanted * d * (4 + _BYTES[self.storage]) + copied * self._reserve_bytes(total, d, wanted)

    def _reserve_bytes(self, total: int, d: int, wanted: int) -> int:
        """Size in int8; a bank of all patches has no reserve."""
        return min(total, self.reserve * wanted) * d if wanted < total else 0

    def _bytes_a_patch(self, d: int) -> int:
        """The patch, its projection, and some float64 numbers of the selection."""
        return d * 4 + self.projection * 4 + 48


def _compare(bank: Index, exact: Index, queries: Tensor) -> tuple[float, float]:
    """Largest change of a distance relative to the mean distance, and share of nearest patches that are found."""
    found, expected = bank.search(queries, 1)[0].sqrt(), exact.search(queries, 1)[0].sqrt()
    error = float((found - expected).abs().max() / expected.mean())
    return error, recall(bank, exact, queries, 1)
