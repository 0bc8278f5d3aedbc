"""Odd folders through everything that lists them: only a value, or an error of our own, may come out, soon.

    python tests/fuzz/folders.py --count 10000 --seed 0

Each folder begins as one of the known layouts, or empty, and is changed: other names and letter case, links and loops,
files that are none, masks beside images, unreadable folders, damaged tables and packed files. It is opened to learn
from, to judge, as a labelled set and as the options say, and every 200th is inspected. What is opened must be there, no
image may be learned from and tested on, and no mask learned from.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

from blemish.datasets.dataset import Dataset
from blemish.datasets.folders import is_mask_folder
from blemish.datasets.labelled import find_classes, open_labelled, open_parts
from blemish.datasets.layouts import open_dataset, open_to_judge
from blemish.datasets.taken import take
from blemish.errors import BlemishError
from blemish.images import listing
from blemish.inspection.inspect import inspect_dataset, inspection_json
from campaign import peak_megabytes, stop_at_sigterm

MOST_SECONDS = 2.0  # of this process, so that a busy machine finds nothing
MOST_MEGABYTES = 400

LAYOUTS: tuple[tuple[str, ...], ...] = (
    (),
    ("0.png", "1.png", "2.png"),
    ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/hole/0.png", "ground_truth/hole/0_mask.png"),
    ("train/ok/0.png", "test/ok/0.png", "test/ko/0.png", "ground_truth/ko/0.png"),
    ("train/good/rgb/0.png", "test/hole/rgb/0.png", "test/hole/gt/0.png"),
    ("train/good/0.png", "test_public/bad/0.png", "test_public/ground_truth/bad/0_mask.png"),
    ("train/good/0.png", "test/logical/0.png", "ground_truth/logical/0/000.png", "ground_truth/logical/0/001.png"),
    ("good/0.png", "good/1.png", "hole/0.png", "masks/hole/0.png"),
    ("0.jpg", "0_label.bmp", "1.jpg", "1_label.bmp", "2.jpg", "2_label.bmp"),
    ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"),
    ("a/0.png", "b/0.png", "c/0.png"),
    ("train.npz", "test.npz"),
    ("data_batch_1.bin", "test_batch.bin", "batches.meta.txt"),
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"),
    ("a.csv", "0.png", "list.txt"),
)
NAMES = (
    "good", "OK", "Normal ", "train", "Training", "test", "TEST_public", "val", "mask", "Ground_Truth", "gt", "masks",
    "hole", "crack", "NG", "a", "b", "rgb", "0", "000", "split_csv", ".git", "__MACOSX", "con", "aux.png", "-rf", "*",
    "[a]", "{kind}", "%s", "a b", "a\nb", "\x1b[31m", "\u00e9", "e\u0301", "\udcff", "x" * 200, "a:one-class=b", "..a",
    "CON.png", "trailing.", "\u202e", "\U0001f600", "not_ok", "masked", "label",
)  # fmt: skip
ENDINGS = (
    "", ".png", ".PNG", ".jpg", ".jpeg", ".bmp", ".tif", "_mask.png", "_gt.png", "_label.bmp", ".csv", ".txt", ".npz",
    ".bin", ".json", ".blemish", ".png.png", "._0.png",
)  # fmt: skip


def contents() -> dict[str, bytes]:
    """What is in files: pictures, masks, and what only seems to be."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    made = {"picture": noise, "other": noise[::-1], "mask": (noise > 128) * np.uint8(255), "black": noise * np.uint8(0)}
    found = {name: _saved(pixels, "PNG") for name, pixels in made.items()}
    packed = io.BytesIO()
    np.savez(packed, images=np.stack([noise] * 4), labels=np.arange(4) % 2)
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 8, 8)) + noise.tobytes() * 2
    return found | {
        "jpeg": _saved(noise, "JPEG"),
        "npz": packed.getvalue(),
        "bin": bytes([1]) + noise.tobytes() * 48,
        "idx": idx,
        "labels": b"\0\0\x08\x01\0\0\0\x02\0\1",
        "empty": b"",
        "text": b"0.png\n1.png\n",
        "table": b"0.png,0\n1.png,1\n",
        "large number": b"0.png," + b"9" * 5000 + b"\n1.png," + b"9" * 30,
        "visa": b"object,split,label,image,mask\na,train,normal,a/0.png,\na,test,anomaly,b/0.png,c/0.png\n",
        "latin": "größe\n".encode("latin-1"),
        "noise": noise.tobytes(),
        "null": b"a\0b.png,1\n",
    }


def _saved(pixels: np.ndarray[Any, Any], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def usual(name: str) -> str:
    """What a file of this name usually holds."""
    ending = name.rpartition(".")[2].lower()
    if "labels-idx" in name or "images-idx" in name:
        return "labels" if "labels" in name else "idx"
    if "mask" in name or "label" in name or "gt" in name:
        return "mask"
    return {"npz": "npz", "bin": "bin", "csv": "table", "txt": "text", "jpg": "jpeg"}.get(ending, "picture")


def make(root: Path, draw: random.Random, known: dict[str, bytes]) -> set[str]:
    """Make one folder; gives those in it that shall be unreadable."""
    root.mkdir()
    folders = [root]
    for path in changed(list(draw.choice(LAYOUTS)), draw):
        for parent in reversed((root / path).parents):
            if len(str(parent)) > len(str(root)) and not os.path.lexists(parent):
                _try(parent.mkdir)
                folders.append(parent)
        content = known[usual(path) if draw.random() < 0.9 else draw.choice(list(known))]
        _try(partial((root / path).write_bytes, content))
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        here = draw.choice(folders) / (draw.choice(NAMES) + draw.choice(ENDINGS))
        targets = (*folders, "..", ".", here.name, "nowhere", "/dev/null", root.parent, "/dev/zero")
        link = partial(here.symlink_to, draw.choice(targets))
        _try(draw.choice((partial(os.mkfifo, here), here.mkdir, link, link)))
    return {str(draw.choice(folders))} if draw.random() < 0.05 else set()


def changed(paths: list[str], draw: random.Random) -> list[str]:
    """The files of a layout, some of them elsewhere."""
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        change = draw.randrange(4)
        if change == 0 and paths:  # another letter case, or name, of one part
            number = draw.randrange(len(paths))
            parts = paths[number].split("/")
            at = draw.randrange(len(parts))
            parts[at] = draw.choice((parts[at].upper(), parts[at].title(), draw.choice(NAMES), f" {parts[at]}"))
            paths[number] = "/".join(parts)
        elif change == 1 and paths:
            paths.pop(draw.randrange(len(paths)))
        elif change == 2 and paths:  # the same in another place
            paths.append("/".join([draw.choice(NAMES), *draw.choice(paths).split("/")[-2:]]))
        else:
            depth = draw.choice((0, 1, 1, 2, 3, 30))
            paths.append("/".join(draw.choice(NAMES) for _ in range(depth + 1)) + draw.choice(ENDINGS))
    return paths


def _try(do: Callable[[], object]) -> None:
    """A name may be too long, or there already."""
    with suppress(OSError):
        do()


class Fault(Exception):
    """What must not happen."""


def uses(root: Path, draw: random.Random, number: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done with a folder, by name."""
    names = [*(entry.name for entry in os.scandir(root)), draw.choice(NAMES), "."]
    yield "listing", lambda: listing.list_folder(root)
    yield "to learn", lambda: taken(open_dataset(root))
    yield "to judge", lambda: taken(open_to_judge(root))
    yield "classes", lambda: find_classes(root)
    yield "parts", lambda: [part and part.class_names() for part in open_parts(root)]
    one = f"{root}:{draw.choice(('one-class', 'all-but'))}={draw.choice(('a', 'b', '0', '1', '*', *names))}"
    yield "one class", lambda: taken(open_dataset(one))
    said = {"normal": [draw.choice(names)], "anomalous": [draw.choice(names)], "masks": draw.choice((None, *names))}
    yield "as said", lambda: taken(open_dataset(root, **said))  # type: ignore[arg-type]
    for name in names[:-2]:
        if name.endswith((".csv", ".npz", ".txt", "ubyte", ".gz")) and (root / name).exists():
            yield "file", lambda name=name: open_labelled(root / name, folders_are_classes=True).class_names()  # type: ignore[misc]
    if number % 200 == 0:
        yield "inspect", lambda: json.dumps(inspection_json(inspect_dataset(open_dataset(root), workers=1)))


def taken(dataset: Dataset) -> str:
    """What is said of a data set, after a look at what must hold of each."""
    tested, masks = {sample.path for sample in dataset.test}, {sample.mask for sample in dataset.test}
    if tested & {*dataset.train}:
        raise Fault(f"to learn and to test: {sorted(tested & {*dataset.train})}")
    if masks & {*dataset.train} or masks & tested:
        raise Fault("a mask is taken for an image")
    if dataset.layout not in ("as said", "visa") and dataset.packed is None and dataset.root.is_dir():
        inside = [path.relative_to(dataset.root).parts[:-1] for path in dataset.train]
        if any(is_mask_folder(part) for parts in inside for part in parts):
            raise Fault("learned from a folder of masks")
    found = take(dataset)
    return "\n".join([*found.lines(), json.dumps(found.as_json())])


def check(root: Path, draw: random.Random, number: int, unreadable: set[str]) -> Counter[str]:
    """Use a folder in every way; raises `Fault`."""
    counts: Counter[str] = Counter()
    whole = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path) in unreadable:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return whole(path)

    for name, use in uses(root, draw, number):
        start = time.process_time()
        listing.os = SimpleNamespace(**vars(os) | {"scandir": scandir}) if unreadable else os  # type: ignore[assignment]
        try:
            use()
            counts[f"{name}: value"] += 1
        except BlemishError as error:
            if not str(error).strip():
                raise Fault(f"{name}: an error without words") from error
            counts[f"{name}: refused"] += 1
        except Fault as fault:
            raise Fault(f"{name}: {fault}") from fault
        except Exception as error:
            lines = "".join(traceback.format_tb(error.__traceback__)[-3:])
            raise Fault(f"{name}: {error!r}\n{lines}") from error
        finally:
            listing.os = os  # type: ignore[assignment]
        if time.process_time() - start > MOST_SECONDS:
            raise Fault(f"{name}: took {time.process_time() - start:.1f} s")
    return counts


def fuzz(count: int, *, seed: int, keep: Path | None = None) -> Iterator[tuple[Counter[str], str]]:
    """Make and use so many folders; gives what came of each, and what was wrong."""
    known = contents()
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            draw, root, wrong = random.Random(f"{seed} {number}"), Path(made, "f"), ""
            unreadable = make(root, draw, known)
            counts: Counter[str] = Counter()
            try:
                counts = check(root, draw, number, unreadable)
            except Fault as fault:
                wrong = f"folder {number} of seed {seed}: {fault}"
                if keep is not None:
                    shutil.copytree(root, keep / f"{seed}-{number}", symlinks=True, ignore_dangling_symlinks=True)
            shutil.rmtree(root)
            yield counts, wrong


def main() -> int:
    """Run from the command line; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    stop_at_sigterm()
    counts, done, faults, start = Counter[str](), 0, 0, peak_megabytes()
    try:
        for found, wrong in fuzz(given.count, seed=given.seed, keep=given.keep):
            counts, done = counts + found, done + 1
            faults += bool(wrong)
            if wrong:
                print(f"FAULT {wrong}", flush=True)
    finally:  # also where somebody stops it
        for name, times in sorted(counts.items()):
            print(f"{name:22} {times:7}")
        taken = peak_megabytes() - start
        faults += taken > MOST_MEGABYTES
        print(f"{done} folders, {faults} faults; memory grew by {taken:.0f} MB; {time.process_time():.0f} s of work")
    return min(1, faults)


if __name__ == "__main__":
    sys.exit(main())
