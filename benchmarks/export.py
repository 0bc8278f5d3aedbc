"""Exported files beside their detectors: do they say the same, how fast are they, how soon is the first verdict there?

    python benchmarks/export.py parity DATA [DATA ...] --methods padim,patchcore --images 300 [--format torch]
    python benchmarks/export.py speed DATA --weights resnet18.pth --side 900
    peer/bin/pip install anomalib==2.7.0 torch==2.13.0 torchvision==0.28.0 openvino onnx onnxscript
    python benchmarks/export.py speed DATA --weights resnet18.pth --side 900 --peer peer/bin/python

`parity` fits each method on the training images, exports it, which compares the images of the fit, and then judges the
test images both ways; of a data set with few normal images `--rate` is the false-alarm rate. `speed` prints ms an image
from pixels in memory to score, map and verdict, one fresh process a row: ours with one and with eight images a batch,
and the file, which takes one picture at a time, on ONNX Runtime and on OpenVINO (in float32), and as a program of
torch. `--side` brings the pictures to that side first, as a camera has them. With `--peer` also what anomalib exports
for OpenVINO (ResNet-18, 1 % of the patches), by its own inferencer, whose maps stay at the network's size. Then the
time from the start of a process to the first verdict, and what is installed for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from _measure import median_seconds, peak_bytes, run_json, write

ROWS = [(method, backbone, threads) for method in ("padim", "patchcore") for backbone in ("compact", "resnet18")
        for threads in (1, 2)]  # fmt: skip
DEVICE = ("numpy", "pillow", "onnxruntime", "protobuf", "flatbuffers", "packaging")
"""What run.py needs, and what that needs."""


def parity(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a data set and method."""
    from blemish import METHODS, Detector, open_dataset
    from blemish.export.parity import pixels_of
    from blemish.export.run import DEFAULTS, open_model
    from blemish.export.write import SUFFIXES, export_model

    rows, suffix = [], SUFFIXES[options.format]
    for data in options.data:
        dataset = open_dataset(data)
        train, test = dataset.train_images(), dataset.test_images()
        train = train.subset(list(range(min(options.images, len(train)))))
        test = test.subset(list(range(0, len(test), max(1, len(test) // options.images))))
        for name in options.methods.split(","):
            detector = Detector(method=METHODS[name](), false_alarm_rate=options.rate).fit(train)
            with tempfile.TemporaryDirectory() as folder:
                made = export_model(detector, Path(folder, f"m{suffix}"), format=options.format, images=train)
                judge, _ = open_model(str(made.path), DEFAULTS.get(suffix, "onnxruntime"), 0)
            score = map = 0.0
            largest, verdicts = 1e-30, 0
            for i, decision in enumerate(detector.predict(test)):
                found = {
                    name: np.asarray(value) for name, value in judge(pixels_of(test.load(i), decision.name)).items()
                }
                largest = max(largest, abs(decision.score))
                score = max(score, abs(decision.score - float(found["score"][0])))
                verdicts += decision.is_anomalous != bool(found["anomalous"][0])
                if decision.map is not None:
                    away = np.nanmax(np.abs(decision.map - found["map"][0])) / np.nanmax(np.abs(decision.map))
                    map = max(map, float(away))
            fit = made.parity
            rows.append({
                "data": Path(data).name, "method": name, "fit images": fit.images, "score": fit.score, "map": fit.map,
                "nearest to threshold": fit.nearest, "test images": len(test), "test score": score / largest,
                "test map": map if fit.map is not None else None, "verdicts that differ": verdicts,
                "MB": round(made.bytes / 1e6, 1),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Fit and export each detector once, and decode test images; in a process of its own, for its memory."""
    from PIL import Image

    from blemish import METHODS, Detector, open_dataset
    from blemish.export.write import export_model

    test = open_dataset(options.data[0]).test_images()
    chosen = range(0, len(test), max(1, len(test) // options.pictures))
    shown = [np.asarray(_sized(test.load(i), options.side)) for i in chosen][: options.pictures]
    np.savez(folder / "pictures.npz", *shown)
    Image.fromarray(shown[0]).save(folder / "one.png")
    train = open_dataset(options.data[0]).train_images()
    train = train.subset(list(range(min(60, len(train)))))
    for method, backbone in dict.fromkeys((method, backbone) for method, backbone, _ in ROWS):
        weights = options.weights if backbone == "resnet18" else None
        detector = Detector(method=METHODS[method](backbone=backbone, weights=weights)).fit(train)
        detector.save(folder / f"{method}-{backbone}.blemish")
        (folder / f"{method}-{backbone}").mkdir()
        for format, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
            place = folder / f"{method}-{backbone}" / f"m{suffix}"
            export_model(detector, place, format=format, images=train.subset(list(range(12))))


def _sized(picture: Any, side: int | None) -> Any:
    return picture if side is None else picture.resize((side, side))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One contender, in a process of its own."""
    with np.load(options.shown) as kept:
        shown = list(kept.values())
    path = Path(options.one)
    if path.suffix == ".blemish":
        from blemish import Detector

        detector = Detector.load(path)
        detector.batch_size, detector.workers = options.batch, 1
        seconds = median_seconds(lambda: list(detector.predict(shown)), 3)
    else:
        import runpy

        # The program beside the file, so that nothing of ours is loaded.
        judge, _ = runpy.run_path(str(path.with_name("run.py")))["open_model"](
            str(path), options.runtime, options.threads
        )
        seconds = median_seconds(lambda: [judge(picture[None]) for picture in shown], 3)
    return {"ms": 1e3 * seconds / len(shown), "peak_mb": peak_bytes() / 1e6}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """The table of times, cold starts and sizes."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [sys.executable, __file__, "speed", options.data[0], "--prepare", name]
        made += ["--pictures", str(options.pictures), *(["--weights", options.weights] if options.weights else [])]
        subprocess.run([*made, *(["--side", str(options.side)] if options.side else [])], check=True)
        side = [options.peer, str(Path(__file__).with_name("_anomalib_openvino_side.py").resolve())]
        if options.peer:
            given = ["--data", str(Path(options.data[0]).resolve()), "--weights", str(Path(options.weights).resolve())]
            given += ["--side", str(options.side)] if options.side else []
            quiet = subprocess.DEVNULL  # it draws bars, and says much of its exporter
            subprocess.run([*side, "prepare", name, *given], check=True, stdout=quiet, stderr=quiet)
        for method, backbone, threads in (row for row in ROWS if row[0] in options.methods.split(",")):
            model, file = folder / f"{method}-{backbone}.blemish", folder / f"{method}-{backbone}" / "m.onnx"
            program = file.with_suffix(".pt2")
            contenders = {
                "torch, batch 1": [model, "--batch", 1], "torch, batch 8": [model, "--batch", 8],
                "onnxruntime": [file, "--runtime", "onnxruntime"], "openvino": [file, "--runtime", "openvino"],
                "torch program": [program, "--runtime", "torch"],
            }  # fmt: skip
            row: dict[str, Any] = {"method": method, "backbone": backbone, "threads": threads}
            for contender, (place, *more) in contenders.items():
                command = [sys.executable, __file__, "speed", options.data[0], "--threads", threads]
                command += ["--shown", folder / "pictures.npz", "--one", place, *more]
                os.environ["OMP_NUM_THREADS"] = str(threads)
                found = run_json([str(part) for part in command])
                row |= {contender: round(found["ms"], 1), f"{contender}, MB": round(found["peak_mb"])}
            if options.peer and backbone == "resnet18":
                given = ["--method", method, "--shown", str(folder / "pictures.npz"), "--threads", str(threads)]
                found = run_json([*side, "time", name, *given])
                row |= {"anomalib": round(found["ms"], 1), "anomalib, MB": round(found["peak_mb"])}
            rows.append(row)
            print(json.dumps(row), flush=True)
        picture = folder / "one.png"
        first = "-".join(ROWS[0][:2])
        file = folder / first / "m.onnx"
        starts = {
            "run.py": [file.with_name("run.py"), file, picture],
            "run.py, torch": [file.with_name("run.py"), file.with_suffix(".pt2"), picture],
            "blemish predict": ["-m", "blemish", "predict", folder / f"{first}.blemish", picture],
        }
        cold = {what: round(first_verdict([str(part) for part in command]), 2) for what, command in starts.items()}
    ours = ("torch", "torchvision", "scipy", "scikit-learn", "numpy", "pillow", "matplotlib", "sympy", "networkx")
    sizes = {"run.py": installed_mb(DEVICE), "blemish predict": installed_mb(ours)}
    print(json.dumps({"seconds to the first verdict": cold, "MB installed": sizes}))
    return {"rows": rows, "cold": cold, "sizes": sizes}


def first_verdict(command: list[str]) -> float:
    """Seconds of a whole process, the fastest of three."""
    seconds = []
    for _ in range(3):
        start = perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        seconds.append(perf_counter() - start)
    return min(seconds)


def installed_mb(packages: tuple[str, ...]) -> int:
    """Megabytes on the disk of these packages."""
    files = [file.locate() for name in packages for file in distribution(name).files or ()]
    return round(sum(Path(str(file)).stat().st_size for file in files if Path(str(file)).is_file()) / 1e6)


def main() -> None:
    """Read the options, and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parity", "speed"))
    parser.add_argument("data", nargs="+")
    parser.add_argument("--methods", default="padim,patchcore,subspace,knn,gaussian,ocsvm,svdd")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--format", choices=("onnx", "openvino", "torch"), default="onnx", help="for `parity`")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--weights", help="of ResNet-18, for `speed`")
    parser.add_argument("--side", type=int, help="for `speed`: of the pictures; None: as they are")
    parser.add_argument("--peer", help="python of the peer's environment, for `speed`")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--shown", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--runtime", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(options, Path(options.prepare))
        return
    if options.one:
        print(json.dumps(measure(options)))
        return
    write(options.out, parity(options) if options.what == "parity" else speed(options))


if __name__ == "__main__":
    main()
