"""Makes the pairs of in-distribution images and outliers behind docs/ood.md from public data sets.

    python benchmarks/ood_data.py DATA OUT

DATA holds `cifar10/test_jpg.tar.xz` and `cifar10/train_jpg_1000_per_class.tar.xz` (class folders),
`ood/tiny_imagenet_val_3000.tar`, `ood/textures`, `ood/notmnist` (idx files) and `imagenet_sample` (one image a class,
in the order of the classes). OUT gets folders, `.npz` and `.csv` files that `blemish ood` reads.
"""

from __future__ import annotations

import argparse
import gzip
import tarfile
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for archive, name in (
        ("cifar10/test_jpg.tar.xz", "cifar10_test"),
        ("cifar10/train_jpg_1000_per_class.tar.xz", "cifar10_train"),
        ("ood/tiny_imagenet_val_3000.tar", "tiny_imagenet"),
    ):
        with tarfile.open(args.data / archive) as file:
            file.extractall(args.out / name, filter="data")
    letters = next(args.data.glob("ood/notmnist/*images-idx3-ubyte.gz"))
    raw = gzip.decompress(letters.read_bytes())
    count, height, width = np.frombuffer(raw, ">i4", 3, offset=4)
    np.savez(args.out / "notmnist.npz", images=np.frombuffer(raw, np.uint8, offset=16).reshape(count, height, width))
    images = sorted((args.data / "imagenet_sample").glob("*.jpg"))
    lines = "".join(f"{path.resolve()},{i}\n" for i, path in enumerate(images))
    (args.out / "imagenet_sample.csv").write_text(lines)


if __name__ == "__main__":
    main()
