"""Which bets watch a stream best, how often they alarm without a cause, and how soon with one.

    python benchmarks/drift.py choose
    python benchmarks/drift.py false-alarms
    python benchmarks/drift.py real ../shared/data/mtd [METHOD]
    python benchmarks/drift.py more ../shared/data/mtd [METHOD]

The rules are in docs/experiments/drift.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from blemish.datasets.layouts import open_dataset
from blemish.detector import Detector
from blemish.drift import DriftMonitor, bet, capital, no_bets
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays
from blemish.metrics import binomial_interval

DELTA = 0.05
_TINY = 2.0**-53


def ranked(calibration, streams, seed=0, block=100):
    """P-values of many streams, `(streams, n)` and `(streams, images)` to `(streams, images)`: the definition.

    Scores of a block are counted one by one, those before it by bisection.
    """
    drawn = 1 - np.random.default_rng(seed).random(streams.shape)
    found = np.empty(streams.shape)
    earlier = np.tri(block, k=-1, dtype=bool)  # of image i, image j < i
    for row, (known, stream) in enumerate(zip(calibration, streams, strict=True)):
        seen = np.sort(known)
        for start in range(0, stream.size, block):
            x = stream[start : start + block]
            before = earlier[: x.size, : x.size]
            above = seen.size - np.searchsorted(seen, x, "right") + ((x > x[:, None]) & before).sum(axis=1)
            equal = 1 + np.searchsorted(seen, x, "right") - np.searchsorted(seen, x, "left")
            equal += ((x == x[:, None]) & before).sum(axis=1)
            u = drawn[row, start : start + block]
            found[row, start : start + block] = (above + u * equal) / (known.size + start + np.arange(x.size) + 1)
            seen = np.sort(np.concatenate([seen, x]), kind="stable")
    return found


def ours(p):
    """Log capital after each image, `(streams, images)`."""
    bets, found = no_bets(p.shape[:1]), np.empty(p.shape)
    for t in range(p.shape[1]):
        bets = bet(bets, p[:, t], t)
        found[:, t] = capital(bets, t + 1)
    return found


def composite_jumper(p):
    """Vovk et al., "Retrain or not retrain", 2021: the mean of Simple Jumpers of five rates."""
    rates = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])[:, None]
    slopes = np.array([-1.0, 0.0, 1.0])
    held = np.full((len(p), 5, 3), 1 / 3)
    scale, found = np.zeros((len(p), 5)), np.empty(p.shape)
    for t in range(p.shape[1]):
        held = (1 - rates) * held + rates * held.sum(axis=2, keepdims=True) / 3
        held *= 1 + slopes * (np.clip(p[:, t], _TINY, 1 - _TINY)[:, None, None] - 0.5)
        total = held.sum(axis=2)
        scale += np.log(total)
        held /= total[..., None]
        found[:, t] = np.logaddexp.reduce(scale, axis=1) - np.log(5)
    return found


def from_the_start(p):
    """The same bets as ours, all made before the first image."""
    found, bets = np.empty(p.shape), np.zeros((len(p), no_bets().size))
    for t in range(p.shape[1]):
        bets = bet(bets, p[:, t], 10**9)  # so late that nothing new is put on them
        found[:, t] = np.logaddexp.reduce(bets, axis=1) - np.log(bets.shape[1])
    return found


CANDIDATES: dict[str, Callable] = {
    "Composite Jumper": composite_jumper,
    "power bets from the start": from_the_start,
    "power bets at any time": ours,
}
CHANGES: dict[str, Callable] = {
    "+0.5 sigma": lambda x, random: x + 0.5,
    "+1 sigma": lambda x, random: x + 1,
    "-1 sigma": lambda x, random: x - 1,
    "5 % defects (+4 sigma)": lambda x, random: x + 4 * (random.random(x.shape) < 0.05),
}


def choose(streams=200, n=50, within=500):
    print("| change | at image | " + " | ".join(CANDIDATES) + " |\n|---|---|" + "---|" * len(CANDIDATES))
    sums = np.zeros(len(CANDIDATES))
    for name, change in CHANGES.items():
        for start in (0, 2000):
            random = np.random.default_rng(start + 11)
            x = random.standard_normal((streams, start + within))
            x[:, start:] = change(x[:, start:], random)
            p = ranked(random.standard_normal((streams, n)), x)
            cells = []
            for number, candidate in enumerate(CANDIDATES.values()):
                alarm = candidate(p) >= -np.log(DELTA)
                early, found = alarm[:, :start].any(axis=1), alarm[:, start:]
                hit = found.any(axis=1) & ~early
                sums[number] += hit.mean() / 8
                delay = np.median(np.where(hit, found.argmax(axis=1) + 1, np.inf))
                cells.append(f"{hit.mean():.0%}, {delay:.0f}")
            print(f"| {name} | {start} | " + " | ".join(cells) + " |", flush=True)
    print("| mean | | " + " | ".join(f"{share:.1%}" for share in sums) + " |")


def false_alarms(streams=2000, images=10_000):
    print("| calibration scores | scores | streams with an alarm | exact 95 % interval |\n|---|---|---|---|")
    random = np.random.default_rng(1)
    for n, kind in ((20, "continuous"), (50, "continuous"), (200, "continuous"), (50, "with ties")):
        alarms = 0
        for part in range(10):  # less memory
            x = random.standard_normal((streams // 10, n + images))
            x = x if kind == "continuous" else x.round(1)
            alarms += int((ours(ranked(x[:, :n], x[:, n:], seed=part)).max(axis=1) >= -np.log(DELTA)).sum())
        found = binomial_interval(alarms, streams)
        verdict = "" if found.low <= DELTA else " FAILS"
        print(
            f"| {n} | {kind} | {alarms} of {streams} ({alarms / streams:.2%}) | "
            f"{found.low:.2%} to {found.high:.2%}{verdict} |",
            flush=True,
        )


def darker(image):
    return image.point(lambda value: value * 0.92)


def defocused(image):
    return image.filter(ImageFilter.GaussianBlur(1.5))


def shifted(image):
    return Image.fromarray(np.pad(np.asarray(image), ((0, 0), (5, 0), (0, 0)), mode="edge")[:, :-5])


def dusty(image):
    """Eight dark specks of 4 pixels, at the same places of every image: on the lens."""
    found, random = image.copy(), np.random.default_rng(0)
    draw = ImageDraw.Draw(found)
    for x, y in random.random((8, 2)):
        place = int(x * image.width), int(y * image.height)
        value = int(0.7 * np.mean(image.getpixel((min(place[0], image.width - 1), min(place[1], image.height - 1)))))
        draw.ellipse([place[0] - 2, place[1] - 2, place[0] + 2, place[1] + 2], fill=(value,) * 3)
    return found


REAL: dict[str, Callable] = {
    "nothing": lambda image: image,
    "brightness -8 %": darker,
    "defocus, sigma 1.5 px": defocused,
    "shift of 5 px": shifted,
    "dust, 8 specks of 4 px": dusty,
}


def real(folder, method="patchcore", *, orders=50, before=100, learned=200, judged=452):
    dataset, random = open_dataset(folder), np.random.default_rng(0)
    good = [*dataset.train, *(s.path for s in dataset.test if not s.anomalous)]
    good = [good[i] for i in random.permutation(len(good))[: learned + judged]]
    photos = [Image.open(path).convert("RGB") for path in good]
    detector = Detector(method=method, preprocess=Preprocess(128), calibration="none")
    detector.fit(from_arrays([np.asarray(photo) for photo in photos[:learned]]))
    scores = {name: scored(detector, [change(photo) for photo in photos[learned:]]) for name, change in REAL.items()}
    bad = [Image.open(s.path).convert("RGB") for s in dataset.test if s.anomalous]
    bad = scored(detector, [bad[i] for i in random.permutation(len(bad))[:60]])
    flags = {name: np.mean(found > np.quantile(scores["nothing"], 0.95)) for name, found in scores.items()}
    print({name: f"{share:.0%} of sound images above the 95 % quantile" for name, share in flags.items()})
    print("| after image | change | " + " | ".join(f"n = {n}" for n in (20, 50, 200)) + " |\n|---|---|---|---|---|")
    for start in (0, before):
        for name in (*REAL, "10 % defects"):
            cells = []
            for n in (20, 50, 200):
                delays = [delay(scores, bad, name, n=n, start=start, order=order) for order in range(orders)]
                found = np.array([d for d in delays if d is not None and d > 0])
                early = sum(d is not None and d <= 0 for d in delays)
                median = np.median([d if d is not None else np.inf for d in delays if d is None or d > 0])
                cells.append(f"{found.size / (orders - early):.0%}, {median:.0f}")
            print(f"| {start} | {name} | " + " | ".join(cells) + " |", flush=True)


def brightness(photo):
    return float(np.asarray(photo, dtype=float).mean())


def sharpness(photo):
    """Mean size of the second difference, both ways."""
    grey = np.asarray(photo.convert("L"), dtype=float)
    return float(sum(np.abs(np.diff(grey, 2, axis=axis)).mean() for axis in (0, 1)))


WATCHED: dict[str, tuple[str, ...]] = {
    "score": ("score",),
    "score, brightness": ("score", "brightness"),
    "score, brightness, sharpness": ("score", "brightness", "sharpness"),
}


def more(folder, method="patchcore", *, orders=50, start=100, n=50, learned=200, judged=452):
    """Streams that are watched by several numbers of a picture, each with its share of delta (a union bound)."""
    dataset, random = open_dataset(folder), np.random.default_rng(0)
    good = [*dataset.train, *(s.path for s in dataset.test if not s.anomalous)]
    good = [good[i] for i in random.permutation(len(good))[: learned + judged]]
    photos = [Image.open(path).convert("RGB") for path in good]
    detector = Detector(method=method, preprocess=Preprocess(128), calibration="none")
    detector.fit(from_arrays([np.asarray(photo) for photo in photos[:learned]]))
    known = {}
    for name, change in REAL.items():
        changed = [change(photo) for photo in photos[learned:]]
        known[name] = {
            "score": scored(detector, changed),
            "brightness": np.array([brightness(photo) for photo in changed]),
            "sharpness": np.array([sharpness(photo) for photo in changed]),
        }
    print("| after image | change | " + " | ".join(WATCHED) + " |\n|---|---|---|---|---|", flush=True)
    for begin in (0, start):
        for name in REAL:
            cells = []
            for watched in WATCHED.values():
                delays = [soonest(known, name, watched, n=n, start=begin, order=order) for order in range(orders)]
                early = sum(d is not None and d <= 0 for d in delays)
                found = sum(d is not None and d > 0 for d in delays)
                median = np.median([d if d is not None else np.inf for d in delays if d is None or d > 0])
                cells.append(f"{found / (orders - early):.0%}, {median:.0f}")
            print(f"| {begin} | {name} | " + " | ".join(cells) + " |", flush=True)


def soonest(known, name, watched, *, n, start, order):
    """As `delay`, by the first of several monitors that alarms."""
    places = np.random.default_rng(order).permutation(len(known[name]["score"]))
    stream, alarms = places[n:], []
    for what in watched:
        sound = known["nothing"][what]
        x = np.concatenate([sound[stream[:start]], known[name][what][stream[start:]]])
        monitor = DriftMonitor(sound[places[:n]], delta=DELTA / len(watched), seed=order)
        alarms.append(monitor.extend(x).alarm_at)
    return min((alarm - start for alarm in alarms if alarm is not None), default=None)


def scored(detector, photos):
    arrays = [np.asarray(photo) for photo in photos]
    return np.array([decision.score for decision in detector.predict(from_arrays(arrays))])


def delay(scores, bad, name, *, n, start, order):
    """Images from the change to the alarm; 0 or less: before it; None: never."""
    random = np.random.default_rng(order)
    sound = scores["nothing"]
    places = random.permutation(sound.size)
    stream = places[n:]
    x = np.concatenate([sound[stream[:start]], scores.get(name, sound)[stream[start:]]])
    if name == "10 % defects":
        chosen = np.flatnonzero(random.random(x.size) < 0.1)
        chosen = chosen[chosen >= start]
        x[chosen] = random.permutation(bad)[: chosen.size]
    alarm = DriftMonitor(sound[places[:n]], delta=DELTA, seed=order).extend(x).alarm_at
    return None if alarm is None else alarm - start


if __name__ == "__main__":
    {"choose": choose, "false-alarms": false_alarms, "real": real, "more": more}[sys.argv[1]](*sys.argv[2:])
