"""Whether a stream of images still is what it was: a test that may be looked at after every image, for ever.

Each score is ranked among the calibration scores *and all earlier scores of the stream*, ties by a seeded draw. While
all of them are exchangeable, these p-values are independent and uniform (Vovk, Nouretdinov, Gammerman, "Testing
exchangeability on-line", ICML 2003). P-values against one fixed set of scores are not independent: a stream would
alarm because that set was drawn unluckily.

Capital is bet against the uniform p-values. If they are uniform, no bet gains on average (a test martingale), so the
chance that the capital ever reaches 1 / delta is at most delta (Ville's inequality), however long the stream is.

The bets are densities of p, power martingales of both directions: `a p^(a - 1)` and `a (1 - p)^(a - 1)`. Nobody knows
when a change comes, so half of the capital is put on them before the first image, in equal parts, and a little more
before every later one. It stays where it was put: a mixture over bets and over the time of the change. The rule by
which this was chosen, and what it was chosen from, is in docs/experiments/drift.md.

A change of light, focus or position may move the picture and hardly its score. So `StreamMonitor` watches the numbers
of `types.Look` as well, each like the score, as a stream of its own. The mean of several capitals is one that no bet
lets grow on average, however they depend on each other, so it alarms at 1 / delta with the same promise.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibrate import Calibration
from .errors import ArgumentError
from .parameters import parameter, read_plain
from .types import Floats, Look

POWERS = (1 / 4, 1 / 2, 3 / 4, 4 / 3, 2.0, 4.0)
"""`a` of the bets: below 1 they win by a few p at one end, above 1 by many in the other half."""
LATE = 1000
"""Images in which half of what was not put on bets at first is put on them."""
SIGNS = (
    "some scores are much higher: more defects, dust, a scratch on the lens",
    "scores are lower",
    "some scores are much lower: pictures that show nothing, or the same thing again",
    "scores are higher: light, focus, position, another batch of parts",
)
"""Which bets won: on p close to 0, on large p, on p close to 1, on small p."""
LOOKS = {
    "level": ("brighter", "darker"),
    "contrast": ("richer in contrast", "poorer in contrast"),
    "sharpness": ("sharper", "more blurred"),
    "x": ("further to the right", "further to the left"),
    "y": ("further down", "further up"),
}
"""Of each number of a `Look`, what a larger and what a smaller one means."""

_NOTHING = -1e9  # as a logarithm that JSON can hold
_TINY = 2.0**-53


@dataclass(frozen=True, slots=True)
class Drift:
    """What a stream looks like after its latest image."""

    images: int
    """Of the stream, so far."""
    p_value: float | None
    """Of the latest image among all that came before, in (0, 1]; None before the first one."""
    evidence: float
    """The capital now, as its natural logarithm; it began with 0."""
    highest: float
    """The most that it ever was."""
    alarm_at: int | None
    """The image, from 1, at which the capital reached 1 / delta; None: not yet. It stays."""
    sign: str
    """What the bets that gained most say of the change."""

    @property
    def is_alarm(self) -> bool:
        """True from the first moment on at which the capital reached 1 / delta."""
        return self.alarm_at is not None


class DriftMonitor:
    """Watches one stream of scores.

    `calibration_scores` are raw scores of held-out normal images, one for each group where images come in groups; none:
    the stream alone is compared with itself. Exchangeable streams alarm at most with probability `delta`, however
    long they are. `seed` draws the order of equal scores. Memory: 8 bytes a score.

    >>> monitor = DriftMonitor([0.1, 0.4, 0.2, 0.3] * 10, delta=0.05)
    >>> monitor.update(0.25).is_alarm
    False
    >>> monitor.extend([0.9] * 60).alarm_at
    5
    """

    def __init__(self, calibration_scores: ArrayLike, *, delta: float = 0.01, seed: int = 0) -> None:
        known = np.asarray(calibration_scores, dtype=np.float64)
        if known.ndim != 1 or not np.isfinite(known).all():
            raise ArgumentError.about("calibration_scores", expected="a list of finite numbers", got=known)
        if not 0 < delta < 1:
            raise ArgumentError.about("delta", expected="a number between 0 and 1", got=delta)
        if seed < 0:
            raise ArgumentError.about("seed", expected="a whole number from 0", got=seed)
        self.delta, self.seed, self.calibration_images = delta, seed, known.size
        self._scores = array("d", np.sort(known).tobytes())
        self._images = 0
        self._bets = no_bets()
        self._evidence = 0.0
        self._p_value: float | None = None
        self._highest = 0.0
        self._alarm_at: int | None = None

    @classmethod
    def of(cls, calibration: Calibration, *, delta: float = 0.01, seed: int = 0) -> DriftMonitor:
        """A monitor that begins with the scores of a calibration, one of each group, drawn by `seed`.

        Only those of `split` are scores of images that this very model has not learned. Others are not exchangeable
        with a stream's, which then is compared with itself alone.
        """
        return cls(calibration.scores[_drawn(calibration, seed)], delta=delta, seed=seed)

    def update(self, score: float) -> Drift:
        """Take the next score of the stream. Raises `ArgumentError` where it is no finite number."""
        if not math.isfinite(score):
            raise ArgumentError.about("score", expected="a finite number", got=score)
        _take([(self, score)])
        return self.drift

    def _rank(self, score: float, drawn: float) -> float:
        """The p-value of the next score, which is among the known ones from then on."""
        low, high = bisect_left(self._scores, score), bisect_right(self._scores, score)
        above, equal = len(self._scores) - high, high - low + 1
        self._scores.insert(high, score)
        return (above + drawn * equal) / len(self._scores)

    def _bet(self, p_value: float, bets: Floats, evidence: float) -> None:
        """Go on to what lies on the bets after this p-value."""
        self._p_value, self._bets, self._evidence = p_value, bets, evidence
        self._images += 1
        self._highest = max(self._highest, evidence)
        if self._alarm_at is None and evidence >= -math.log(self.delta):
            self._alarm_at = self._images

    def extend(self, scores: Iterable[float]) -> Drift:
        """Take many scores, in the order in which they came."""
        for score in scores:
            self.update(score)
        return self.drift

    @property
    def images(self) -> int:
        """Of the stream, so far."""
        return self._images

    @property
    def drift(self) -> Drift:
        """What the stream looks like now."""
        sign = SIGNS[self.leading] if self._images else ""
        return Drift(self._images, self._p_value, self._evidence, self._highest, self._alarm_at, sign)

    @property
    def evidence(self) -> float:
        """The capital now, as its natural logarithm."""
        return self._evidence

    @property
    def leading(self) -> int:
        """Which of the four kinds of bets, in the order of `SIGNS`, has gained most."""
        return int(np.logaddexp.reduce(self._bets.reshape(4, -1), axis=1).argmax())

    def state(self) -> dict[str, Any]:
        """Everything, in JSON types; `restore` goes on from there as if nothing had been in between."""
        return {
            "delta": self.delta,
            "seed": self.seed,
            "calibration_images": self.calibration_images,
            "images": self._images,
            "p_value": self._p_value,
            "highest": self._highest,
            "alarm_at": self._alarm_at,
            "bets": self._bets.tolist(),
            "scores": self._scores.tolist(),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> DriftMonitor:
        """A monitor from its `state()`. Raises `ArgumentError` where that is damaged."""
        values = read_plain(_State, state, of="state")
        monitor = cls(values["scores"], delta=values["delta"], seed=values["seed"])
        counts = values["calibration_images"] + values["images"], len(values["bets"])
        if counts != (len(monitor._scores), 2 * len(POWERS)):
            raise ArgumentError.about("state", expected="as many scores as images", got=counts)
        monitor.calibration_images, monitor._images = values["calibration_images"], values["images"]
        monitor._p_value, monitor._highest = values["p_value"], values["highest"]
        monitor._alarm_at = values["alarm_at"]
        monitor._bets = np.array(values["bets"], dtype=np.float64)  # whole numbers of 30 digits too
        monitor._evidence = float(capital(monitor._bets, monitor._images))
        return monitor


def _take(values: Sequence[tuple[DriftMonitor, float]]) -> None:
    """One more image for monitors of one seed that have seen as many: together in little more than the time of one."""
    monitors = [monitor for monitor, _ in values]
    image = monitors[0]._images
    drawn = 1 - np.random.default_rng((monitors[0].seed, image)).random()  # in (0, 1]
    p_values = [monitor._rank(value, drawn) for monitor, value in values]
    bets = bet(np.stack([monitor._bets for monitor in monitors]), p_values, image)
    evidence = capital(bets, image + 1).tolist()
    for monitor, *found in zip(monitors, p_values, bets, evidence, strict=True):
        monitor._bet(*found)


class StreamMonitor:
    """Watches the scores and the looks of one stream of images, together.

    `calibration_looks` `(n, 5)` are those of the images of `calibration_scores`, in any order; none: the looks of the
    stream are compared with themselves. `scores_only` watches no looks. The rest is as in `DriftMonitor`; memory: 48
    bytes an image.

    >>> random = np.random.default_rng(0)
    >>> looks = [Look(*row) for row in random.normal(0.5, 0.01, (120, 5))]
    >>> monitor = StreamMonitor(random.gamma(4.0, size=100), looks[:100])
    >>> darker = [look._replace(level=0.92 * look.level) for look in looks[100:]]
    >>> drift = monitor.extend(zip(random.gamma(4.0, size=20), darker))
    >>> drift.alarm_at, drift.sign
    (4, 'some pictures are much darker')
    """

    def __init__(
        self,
        calibration_scores: ArrayLike,
        calibration_looks: ArrayLike | None = None,
        *,
        delta: float = 0.01,
        seed: int = 0,
        scores_only: bool = False,
    ) -> None:
        columns = [[] for _ in Look._fields] if calibration_looks is None else np.asarray(calibration_looks).T
        known = {} if scores_only else dict(zip(Look._fields, columns, strict=True))
        self.delta, self.seed = delta, seed
        self.monitors = {
            name: DriftMonitor(values, delta=delta, seed=seed)
            for name, values in {"score": calibration_scores, **known}.items()
        }
        """Of the scores, and of each number of a look."""
        self._highest = 0.0
        self._alarm_at: int | None = None

    @classmethod
    def of(
        cls, calibration: Calibration, *, delta: float = 0.01, seed: int = 0, scores_only: bool = False
    ) -> StreamMonitor:
        """A monitor that begins with the images of a calibration, as `DriftMonitor.of` does."""
        rows = _drawn(calibration, seed)
        looks = None if calibration.looks is None else calibration.looks[rows]
        return cls(calibration.scores[rows], looks, delta=delta, seed=seed, scores_only=scores_only)

    def update(self, score: float, look: Look | None = None) -> Drift:
        """Take the next image of the stream; without a look, those of the others stay what they were.

        Raises `ArgumentError` where a number is not finite.
        """
        self._take(score, look)
        return self.drift

    def _take(self, score: float, look: Look | None) -> None:
        alike: dict[tuple[int, int], list[tuple[DriftMonitor, float]]] = defaultdict(list)
        for name, value in zip(("score", *Look._fields), (score, *(look or ())), strict=False):
            if not math.isfinite(value):
                raise ArgumentError.about(name, expected="a finite number", got=value)
            if name in self.monitors:
                monitor = self.monitors[name]
                alike[monitor.seed, monitor.images].append((monitor, value))
        for values in alike.values():
            _take(values)
        evidence = self._evidence
        self._highest = max(self._highest, evidence)
        if self._alarm_at is None and evidence >= -math.log(self.delta):
            self._alarm_at = self.monitors["score"].images

    def extend(self, images: Iterable[tuple[float, Look | None]]) -> Drift:
        """Take many scores with their looks, in the order in which they came."""
        for score, look in images:
            self._take(score, look)
        return self.drift

    @property
    def calibration_images(self) -> int:
        """How many scores were known before the stream."""
        return self.monitors["score"].calibration_images

    @property
    def evidence_of(self) -> dict[str, float]:
        """The capital of each number that is watched, as a logarithm."""
        return {name: monitor.evidence for name, monitor in self.monitors.items()}

    @property
    def drift(self) -> Drift:
        """What the stream looks like now; the p-value is that of the score."""
        score, evidence_of = self.monitors["score"].drift, self.evidence_of
        name = max(evidence_of, key=lambda name: evidence_of[name])
        sign = score.sign
        if name != "score":
            larger, smaller = LOOKS[name]
            kinds = (f"some pictures are much {larger}", f"pictures are {smaller}",
                     f"some pictures are much {smaller}", f"pictures are {larger}")  # fmt: skip
            sign = kinds[self.monitors[name].leading]
        return Drift(score.images, score.p_value, self._evidence, self._highest, self._alarm_at, sign)

    @property
    def _evidence(self) -> float:
        found = list(self.evidence_of.values())
        return float(np.logaddexp.reduce(found)) - math.log(len(found))

    def state(self) -> dict[str, Any]:
        """Everything, in JSON types; `restore` goes on from there as if nothing had been in between."""
        monitors = {name: monitor.state() for name, monitor in self.monitors.items()}
        return {"highest": self._highest, "alarm_at": self._alarm_at, "monitors": monitors}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> StreamMonitor:
        """A monitor from its `state()`, or from that of a `DriftMonitor`. Raises `ArgumentError` where it is damaged.

        Without looks it goes on with the scores alone.
        """
        if "scores" in state:  # of a monitor of scores: as that of a stream which has no looks
            known = {name: state[name] for name in ("highest", "alarm_at") if name in state}
            state = {**known, "monitors": {"score": state}}
        values = read_plain(_StreamState, state, of="state")
        monitors = {name: DriftMonitor.restore(one) for name, one in values["monitors"].items()}
        if monitors.keys() not in ({"score"}, {"score", *LOOKS}):
            raise ArgumentError.about("state", expected=f"score, {', '.join(LOOKS)}", got=", ".join(monitors))
        of_score = monitors["score"]
        monitor = cls([], delta=of_score.delta, seed=of_score.seed)
        monitor.monitors = monitors
        monitor._highest, monitor._alarm_at = values["highest"], values["alarm_at"]
        return monitor


def _drawn(calibration: Calibration, seed: int) -> slice | NDArray[np.intp]:
    """Which scores of a calibration a stream is exchangeable with: one of each group, drawn by the seed.

    Only those of `split` are scores of images that this very model has not learned.
    """
    if calibration.kind != "split":
        return slice(0)
    if calibration.groups is None:
        return slice(None)
    drawn = np.random.default_rng(seed).permutation(len(calibration.scores))
    return drawn[np.unique(calibration.groups[drawn], return_index=True)[1]]


@dataclass(kw_only=True)
class _StreamState:
    """What `StreamMonitor.state` holds."""

    highest: float = parameter(at_least=0)
    alarm_at: int | None = parameter(at_least=1)
    monitors: dict[str, Any]


@dataclass(kw_only=True)
class _State:
    """What `DriftMonitor.state` holds."""

    delta: float = parameter(above=0, below=1)
    seed: int = parameter(at_least=0)
    calibration_images: int = parameter(at_least=0)
    images: int = parameter(at_least=0)
    p_value: float | None = parameter(above=0, at_most=1)
    highest: float = parameter(at_least=0)
    alarm_at: int | None = parameter(at_least=1)
    bets: tuple[float, ...]
    scores: tuple[float, ...]


def no_bets(streams: tuple[int, ...] = ()) -> Floats:
    """What lies on the bets before the first image, as logarithms, `(*streams, 2 * len(POWERS))`: nothing."""
    return np.full((*streams, 2 * len(POWERS)), _NOTHING)


def bet(bets: Floats, p_values: ArrayLike, image: int) -> Floats:
    """What lies on the bets after one more image of each stream, as logarithms; `image` counts from 0.

    `bets` `(*streams, 2 * len(POWERS))`, `p_values` `(*streams,)`.
    """
    p = np.clip(np.asarray(p_values, dtype=np.float64)[..., None], _TINY, 1 - _TINY)
    fresh = (_kept(image) - _kept(image + 1)) / bets.shape[-1]
    powers = np.array(POWERS)
    gains = np.concatenate([(powers - 1) * np.log(x) + np.log(powers) for x in (p, 1 - p)], axis=-1)
    grown: Floats = np.logaddexp(bets, math.log(fresh)) + gains
    return grown


def capital(bets: Floats, images: int) -> Floats:
    """All that is there after so many images, on bets or not yet, as a logarithm, `(*streams,)`."""
    total: Floats = np.logaddexp(np.logaddexp.reduce(bets, axis=-1), math.log(_kept(images)))
    return total


def _kept(images: int) -> float:
    """The share of the capital that is not put on bets before so many images are there."""
    return 0.5 * LATE / (images + LATE - 1) if images else 1.0
