"""Which bets watch a stream best, how often they alarm without a cause, and how soon with one.

    python benchmarks/drift.py choose
    python benchmarks/drift.py false-alarms
    python benchmarks/drift.py real ../shared/data/mtd [METHOD]
    python benchmarks/drift.py looks ../shared/data/mvtec_ad/screw ...
    python benchmarks/drift.py looks-false-alarms

The rules are in docs/experiments/drift.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import grey_closing
from scipy.special import ndtr

from blemish.datasets.layouts import open_dataset
from blemish.detector import Detector
from blemish.drift import DriftMonitor, bet, capital, no_bets
from blemish.images.look import looks_of
from blemish.images.preprocess import Preprocess
from blemish.images.source import from_arrays
from blemish.metrics import binomial_interval
from blemish.types import Look

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
    if len(good) < learned + judged:
        raise SystemExit(f"{folder}: {learned + judged} normal images are drawn from, {len(good)} are there")
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


ALSO = ("shift x", "shift y", "highlight", "specks")
"""Numbers that were tried beside those of `types.Look`."""
WATCHED: dict[str, tuple[str, ...]] = {
    "score": ("score",),
    "+ level": ("score", "level"),
    "+ contrast, sharpness": ("score", "level", "contrast", "sharpness"),
    "+ x, y (`Look`)": ("score", *Look._fields),
    "+ shift in place of x, y": ("score", "level", "contrast", "sharpness", "shift x", "shift y"),
    "+ highlight, specks": ("score", *Look._fields, "highlight", "specks"),
}


def also(pixels, mean):
    """How far a picture is shifted against the mean learned one, by least squares; bright end; small dark places."""
    slopes = np.stack([(slope - slope.mean()).ravel() for slope in (*np.gradient(mean)[::-1], mean)], axis=1)
    found = []
    for grey in pixels.double().mean(dim=1).numpy():
        x, y, _ = np.linalg.lstsq(slopes, (grey - mean - (grey - mean).mean()).ravel())[0]
        found.append([-x, -y, np.quantile(grey, 0.99), (grey_closing(grey, 3) - grey).mean() / grey.std()])
    return np.array(found)


def numbers(detector, photos, mean):
    """Score, look and more of pictures, by name."""
    rows = [
        np.column_stack([scores.images.numpy(), looks_of(batch.pixels), also(batch.pixels, mean)])
        for batch, scores in detector.score(from_arrays([np.asarray(photo) for photo in photos]))
    ]
    return dict(zip(("score", *Look._fields, *ALSO), np.concatenate(rows).T, strict=True))


def small(path):
    photo = Image.open(path).convert("RGB")
    photo.thumbnail((256, 256))
    return photo


def looks(*folders, orders=50, most=500):
    """Streams that are watched by several numbers of a picture, by the mean of their capitals."""
    for folder in folders:
        dataset, random = open_dataset(folder), np.random.default_rng(0)
        good = [*dataset.train, *(s.path for s in dataset.test if not s.anomalous)]
        places = random.permutation(len(good))[:most]
        photos, learned = [small(good[i]) for i in places], round(0.4 * len(places))
        of_test = places[learned:] >= len(dataset.train)
        detector = Detector(preprocess=Preprocess(128), calibration="none")
        pictures = from_arrays([np.asarray(photo) for photo in photos[:learned]])
        detector.fit(pictures)
        batches = [batch.pixels.double().mean(dim=1).numpy() for batch, _ in detector.score(pictures)]
        mean = np.concatenate(batches).mean(axis=0)
        known = {
            name: numbers(detector, [change(photo) for photo in photos[learned:]], mean)
            for name, change in REAL.items()
        }
        print(
            f"{folder}: deviation of the level {known['nothing']['level'].std() / known['nothing']['level'].mean():.1%}"
        )
        print("| n | after image | change | " + " | ".join(WATCHED) + " |\n|---|---|---|" + "---|" * len(WATCHED))
        for n, start, name in product((20, 50), (0, 40), REAL):
            if n + start + 20 <= len(of_test):
                row = " | ".join(of_streams(known, name, n, start, orders=orders))
                print(f"| {n} | {start} | {name} | {row} |", flush=True)
        print("test part as it comes:", *as_it_comes(known["nothing"], of_test, orders))


def together(calibration, streams):
    """Log capital of each number of `(orders, n)` and `(orders, images)`, and that of their mean."""
    found = {name: ours(ranked(calibration[name], streams[name])) for name in streams}
    return found, np.logaddexp.reduce([*found.values()], axis=0) - np.log(len(found))


def of_streams(known, name, n, start, *, orders):
    order = np.array([np.random.default_rng(i).permutation(len(known[name]["score"])) for i in range(orders)])
    sound, changed = known["nothing"], known[name]
    parts = {
        one: (
            sound[one][order[:, :n]],
            np.hstack([sound[one][order[:, n:][:, :start]], changed[one][order[:, n + start :]]]),
        )
        for one in sound
    }
    capitals = {one: ours(ranked(*pair)) for one, pair in parts.items()}
    for watched in WATCHED.values():
        alarm = np.logaddexp.reduce([capitals[one] for one in watched], axis=0) - np.log(len(watched)) >= -np.log(DELTA)
        sound_before = ~alarm[:, :start].any(axis=1)
        late = alarm[sound_before, start:]
        delays = np.where(late.any(axis=1), late.argmax(axis=1) + 1, np.inf)
        yield f"{np.isfinite(delays).mean():.0%}, {np.median(delays):.0f}"


def as_it_comes(sound, of_test, orders, n=50):
    """Normal pictures of the test part after others of the training part, unchanged: which alarm."""
    random = np.random.default_rng(0)
    train, test = (np.flatnonzero(of_test == part) for part in (False, True))
    rows = [(random.permutation(train)[:n], random.permutation(test)) for _ in range(orders)]
    first, then = (np.array(part) for part in zip(*rows, strict=True))
    own = {one: sound[one] for one in WATCHED["+ x, y (`Look`)"]}
    each, mean = together({one: x[first] for one, x in own.items()}, {one: x[then] for one, x in own.items()})
    for name, capitals in {**each, "mean": mean}.items():
        yield f"{name} {(capitals.max(axis=1) >= -np.log(DELTA)).mean():.0%}"


def looks_false_alarms(streams=2000, images=10_000, share=0.5):
    """As `false_alarms`, of six numbers that depend on each other.

    The rank of an image among all before it is drawn: it is uniform and independent of earlier ones, which is all that
    exchangeable scores say of it. Ranks of one image correlate, by a common part of that `share`.
    """
    print("| calibration images | streams with an alarm | exact 95 % interval |\n|---|---|---|")
    random = np.random.default_rng(2)
    for n in (50, 20, 200):
        bets = [no_bets((streams,)) for _ in range(1 + len(Look._fields))]
        highest = np.zeros(streams)
        for t in range(images):
            common = np.sqrt(share) * random.standard_normal(streams)
            for i, known in enumerate(bets):
                rank = np.floor((n + t + 1) * ndtr(common + np.sqrt(1 - share) * random.standard_normal(streams)))
                bets[i] = bet(known, (rank + 1 - random.random(streams)) / (n + t + 1), t)
            found = np.logaddexp.reduce([capital(known, t + 1) for known in bets], axis=0) - np.log(len(bets))
            highest = np.maximum(highest, found)
        alarms = int((highest >= -np.log(DELTA)).sum())
        found = binomial_interval(alarms, streams)
        verdict = "" if found.low <= DELTA else " FAILS"
        print(
            f"| {n} | {alarms} of {streams} ({alarms / streams:.2%}) | {found.low:.2%} to {found.high:.2%}{verdict} |",
            flush=True,
        )


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
    commands = {"choose": choose, "false-alarms": false_alarms, "real": real, "looks": looks}
    commands["looks-false-alarms"] = looks_false_alarms
    commands[sys.argv[1]](*sys.argv[2:])
