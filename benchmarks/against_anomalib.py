"""PaDiM or PatchCore on ResNet-18: ours against anomalib's, same weights and images, one run, a fresh process each.

    python -m venv peer && peer/bin/pip install anomalib==2.7.0 torch==2.13.0 torchvision==0.28.0
    python benchmarks/against_anomalib.py padim DATA --weights resnet18.pth --peer peer/bin/python

PatchCore reads layer2 and layer3 and keeps 1 % (`--ratio`) on both sides. DATA is in the MVTec layout. Times cover
decoding to maps at 256 x 256, from files to numbers. Both sides fit on all training images and give raw scores; both
are measured by the same metrics, on the network's pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from _measure import peak_bytes, run_json, write

from blemish import metrics


def ours(options: argparse.Namespace, data: Path, out: Path) -> None:
    """Runs in a process of its own."""
    from blemish import METHODS, Detector, open_dataset
    from blemish.features.packages import import_torchvision

    import_torchvision()  # imports do not count, on either side
    dataset = open_dataset(data)
    method = METHODS[options.method]
    parameters = dict(method.paper) if options.paper else {}
    if options.method == "patchcore":
        parameters |= {"ratio": options.ratio, "top_share": 0.0}  # the largest distance, as the published figures
    parameters |= {
        "backbone": "resnet18",
        "weights": options.weights,
        "seed": options.seed,
        "precision": options.precision,
    }
    detector = Detector(method=method(**parameters), calibration="none")
    start = perf_counter()
    detector.fit(dataset.train_images())
    fit = perf_counter() - start
    names, scores, maps = [], [], []
    start = perf_counter()
    for batch, result in detector.score(dataset.test_images()):
        names += batch.names
        scores.append(result.images.numpy())
        maps.append(result.maps.numpy())
    score = perf_counter() - start
    peak = peak_bytes()
    np.savez(out, names=np.array(names), scores=np.concatenate(scores), maps=np.concatenate(maps))
    print(json.dumps({"fit": fit, "score": score, "images": len(names), "peak_bytes": peak}))


def figures(data: Path, found: Path) -> dict[str, float]:
    """Image and pixel AUROC on the network's pixels."""
    from blemish import Preprocess, open_dataset
    from blemish.images.decode import decode_mask

    samples = {str(sample.path): sample for sample in open_dataset(data).test}
    with np.load(found) as file:
        names, scores, maps = file["names"], file["scores"], file["maps"]
    chosen = [samples[str(name)] for name in names]
    masks = [None if s.mask is None else Preprocess(256).mask(decode_mask(s.mask)) for s in chosen]
    curve = metrics.pixel_curve(list(zip(maps, masks, strict=True)))
    anomalous = np.array([s.anomalous for s in chosen])
    return {
        "image_auroc": metrics.auroc(scores, anomalous),
        "pixel_auroc": metrics.pixel_auroc(curve),
        "au_pro_30": metrics.au_pro(curve),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["padim", "patchcore"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--peer", type=Path, help="python of the peer's environment")
    parser.add_argument("--rounds", type=int, default=2, help="ours, peer, ours, peer ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.01, help="share of the patches that PatchCore keeps")
    parser.add_argument("--paper", action="store_true", help="our side with the paper's parameters")
    parser.add_argument("--precision", default="float32", help="of our backbone; the peer's is float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.data.resolve()
    if options.only_ours:
        ours(options, data, options.only_ours)
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.npz"
        same = ["--seed", str(options.seed), "--ratio", str(options.ratio)]
        mine = [sys.executable, __file__, options.method, str(data), "--weights", str(options.weights), *same]
        mine += ["--precision", options.precision]
        sides = {"blemish": [*mine, "--only-ours", str(out), *(["--paper"] if options.paper else [])]}
        if options.peer:
            peer = str(Path(__file__).with_name("_anomalib_side.py"))
            sides["anomalib"] = [
                str(options.peer), peer, options.method, str(data), str(options.weights), str(out), *same
            ]  # fmt: skip
        for number in range(options.rounds):
            for side, command in sides.items():
                row = {"side": side, "round": number, **run_json(command), **figures(data, out)}
                rows.append(row)
                print(
                    f"{side:9} fit {row['fit']:7.1f} s   score {row['score'] / row['images'] * 1e3:6.1f} ms an image   "
                    f"peak {row['peak_bytes'] / 1e9:5.2f} GB   image AUROC {row['image_auroc']:.4f}   "
                    f"pixel AUROC {row['pixel_auroc']:.4f}   AU-PRO {row['au_pro_30']:.4f}",
                    flush=True,
                )
    if options.peer:
        for figure in ("fit", "score", "peak_bytes"):
            best = {side: min(row[figure] for row in rows if row["side"] == side) for side in sides}
            print(f"{figure}: anomalib / blemish = {best['anomalib'] / best['blemish']:.2f}")
    write(options.json, rows)


if __name__ == "__main__":
    main()
