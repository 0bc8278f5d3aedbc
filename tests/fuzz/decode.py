"""Damaged files through the decoder: only `ImageError` may come out, soon, and without taking memory.

    python tests/fuzz/decode.py --count 100000 --seed 0

Each file is a small picture of some format with flipped bits, a piece cut out, doubled or taken from another file, a
cut end, or a number of its header changed. What breaks a promise is written to `--keep` and named.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

from blemish.errors import ImageError
from blemish.images.decode import decode, decode_mask
from blemish.images.preprocess import Preprocess
from blemish.memory import forget_peak, peak_since, resident_bytes
from campaign import stop_at_sigterm

MAX_PIXELS = 1_000_000
MOST_BYTES = 64 * MAX_PIXELS + 100_000_000
MOST_SECONDS = 2.0  # of this process, so that a busy machine finds nothing
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def corpus() -> list[bytes]:
    """Small pictures of every format that is read, in its modes and compressions."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    noise[8:] //= 64  # some of it compresses
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[:, :, :3].copy())
    grey, deep = rgb.convert("L"), Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    palette, bilevel = rgb.quantize(16), rgb.convert("1")
    cmyk = rgb.convert("CMYK")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a camera", 72.5
    made = [
        *((image, "PNG", {}) for image in (rgb, rgba, grey, deep, bilevel)),
        (palette, "PNG", {"transparency": 0}),
        (rgb, "PNG", {"exif": exif}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        *((image, "JPEG", {}) for image in (rgb, grey, cmyk)),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb, "MPO", {"save_all": True, "append_images": [grey.convert("RGB")]}),
        *((image, "BMP", {}) for image in (rgb, grey, palette, bilevel)),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)], "transparency": 0}),
        *((image, "TIFF", {}) for image in (rgb, rgba, deep, bilevel, cmyk)),
        *((rgb, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        (bilevel, "TIFF", {"compression": "group4"}),
        (rgb, "TIFF", {"save_all": True, "append_images": [grey], "exif": exif}),
        (rgb, "WEBP", {}),
        (rgba, "WEBP", {"lossless": True, "exif": exif}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        *((image, "JPEG2000", {}) for image in (rgb, rgba, grey, deep)),
        *((image, "PPM", {}) for image in (rgb, grey, deep, bilevel)),
    ]
    return [_saved(image, name, options) for image, name, options in made] + [b"P3 2 2 255 " + b"9 80 255 " * 4]


def _saved(image: Image.Image, name: str, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def mutate(seeds: list[bytes], chance: random.Random) -> bytes:
    """One to four changes of one of the pictures."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, end = sorted(chance.randrange(len(data) + 1) for _ in "ab")
        if chance.random() < 0.5:  # headers are short, and decide most
            at = chance.randrange(min(len(data), 128) + 1)
            end = min(len(data), at + chance.randrange(1, 9))
        kind = chance.randrange(6)
        if kind == 0:
            for _ in range(chance.randrange(1, 9)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[max(at, 1) :]
        elif kind == 2:
            del data[max(at, 1) : end]
        elif kind == 3:
            data[end:end] = data[at:end]
        elif kind == 4:
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[at:end] = other[start : start + chance.randrange(1, 65)]
        else:
            size = chance.choice((1, 2, 4))
            number = chance.choice(NUMBERS) & (256**size - 1)
            data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
    return bytes(data)


def check(path: Path) -> tuple[str, str]:
    """What came of one file, `image` or `refused` or the kind of a broken promise; and details of that."""
    can_forget, before = forget_peak(), resident_bytes() or 0
    start = time.process_time()
    try:
        outcome = "image"
        for preset in (Preprocess((176, 368)), Preprocess(256, 224)):
            preset.pixels(decode(path, max_pixels=MAX_PIXELS))
        decode_mask(path, max_pixels=MAX_PIXELS)
    except ImageError as error:
        outcome = "refused" if str(error).startswith(str(path)) else "unnamed"
    except Exception:
        return "other error", traceback.format_exc()
    if time.process_time() - start > MOST_SECONDS:
        return "slow", f"{time.process_time() - start:.1f} s"
    taken = (peak_since() or 0) - before if can_forget else 0
    return ("large", f"{taken / 1e6:.0f} MB") if taken > MOST_BYTES else (outcome, "")


def fuzz(count: int, *, seed: int, keep: Path | None = None) -> Iterator[tuple[str, str]]:
    """Check this many files; the same seed makes the same files."""
    seeds, chance = corpus(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        for index in range(count):
            data = mutate(seeds, chance)
            path = Path(folder, f"{index}.png")
            path.write_bytes(data)
            outcome, details = check(path)
            path.unlink()
            if keep is not None and outcome not in ("image", "refused"):
                (keep / f"{seed}-{index}-{outcome.replace(' ', '-')}").write_bytes(data)
            yield outcome, f"file {index} of seed {seed}: {details}"


def main() -> int:
    """Run from the command line; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    stop_at_sigterm()
    counts: Counter[str] = Counter()
    try:
        for outcome, details in fuzz(options.count, seed=options.seed, keep=options.keep):
            counts[outcome] += 1
            if outcome not in ("image", "refused"):
                print(f"{outcome}: {details}", flush=True)
    finally:  # also where somebody stops it
        print(", ".join(f"{outcome} {number}" for outcome, number in counts.most_common()), end="")
        print(f": {counts.total()} pictures; {time.process_time():.0f} s of work")
    return 0 if counts.keys() <= {"image", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
