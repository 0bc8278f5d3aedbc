"""The most memory that each command holds: real processes, on drawn images.

    python benchmarks/peak_memory.py --images 100 --weights resnet18.pth
    python benchmarks/peak_memory.py --images 100 --only export --only watch

`--images` pictures of 256 x 256 pixels to learn from, 76 to test on, and as a video (with OpenCV); the default
settings, but for steps and repetitions. Prints a table, beside what Python and torch hold with nothing done.
`--weights` are those of torchvision's resnet18, as a teacher of `distil` and for the classifier of `ood`, which may be
another one (`--classifier mobilenet_v2 --classifier-weights mobilenet_v2.pth`); without them these are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from blemish.datasets.synthetic import write_dataset

CALLS = {
    "list methods": "list methods",
    "demo": "demo --out {out}/demo --images 100",
    "inspect": "inspect {data} --report {out}/i.html",
    "choose": "choose {data}",
    "fit": "fit {data} --out {out}/m.blemish",
    "fit (auto)": "fit {data} --method auto --out {out}/a.blemish",
    "fit (padim)": "fit {data} --method padim --keep sums --calibration split --out {out}/p.blemish",
    "update": "update {out}/p.blemish {data} --out {out}/u.blemish",
    "recalibrate": "recalibrate {out}/p.blemish {data}/test/good --false-alarm-rate 0.1 --out {out}/n.blemish",
    "forget": "forget {out}/u.blemish {data}/train/good/000.png --out {out}/g.blemish",
    "predict": "predict {out}/m.blemish {data} --out {out}/r",
    "explain": "explain {out}/m.blemish {data}/test --normal {data}/train/good --report {out}/why.html",
    "evaluate": "evaluate {out}/m.blemish {data} --report {out}/e.html",
    "compare": "compare {out}/m.blemish {out}/p.blemish {data}",
    "watch": "watch {out}/m.blemish {data}/test/good --once --out {out}/w.jsonl",
    "stream": "stream {out}/m.blemish {out}/v.avi --out {out}/v.jsonl",
    "watch-scores": "watch-scores {out}/m.blemish {out}/w.jsonl",  # of defects it would alarm
    "upgrade": "upgrade {out}/m.blemish --out {out}/v.blemish",
    "export": "export {out}/m.blemish --images {data} --out {out}/m.onnx",
    "study (its largest process)": "study {data} --methods padim,knn --out {out}/s",
    "report": "report {out}/s",
    "ood score": "ood score {data}/test {classifier} --out {out}/lines.jsonl",
    "ood export": "ood export {classifier} --detector msp --images {data}/test --out {out}/c.onnx",
    "ood evaluate": "ood evaluate {data}/train {classifier} --outliers {data}/test "
    "--detectors msp --report {out}/o.html",
    "ood tune": "ood tune {data}/train {classifier} --outliers {data}/test --limit 20 "
    "--temperatures 1,2 --eps 0,0.001 --out {out}/t.json",
    "ood ablate": "ood ablate {data}/train {classifier} --outliers {data}/test --detector odin "
    "--limit 20 --report {out}/a.html",
    "ood reliability": "ood reliability {data}/test {classifier} --detectors msp --bin-size 9",
    "distil backbone": "distil backbone {data}/train --teacher resnet18 --weights {weights} --steps 2 "
    "--out {out}/c.safetensors",
    "distil descriptor": "distil descriptor {data}/train --backbone resnet18 --tap layer3 --weights {weights} "
    "--steps 2 --out {out}/d.safetensors",
    "fit (1000 x 1000, tiles)": "fit {data} --resize 1000 --tile 256 --false-alarm-rate 0.2 --out {out}/t.blemish",
}


def peak_of(words: list[str]) -> float:
    """Run a command; gives its peak in megabytes."""
    pid = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ, file_actions=_SILENT)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def write_video(pictures: list[Path], path: Path) -> None:
    """Write pictures as the frames of a video."""
    import cv2

    frames = [cv2.imread(str(picture)) for picture in pictures]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


_SILENT = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]


def main() -> None:
    """Measure one command after the other; later ones need the files of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--classifier", default="resnet18", help="of torchvision, for ood")
    parser.add_argument("--classifier-weights", type=Path, help="default: --weights")
    parser.add_argument("--only", action="append", choices=CALLS, help="these alone, behind `fit`")
    given = parser.parse_args()
    of_classifier = given.classifier_weights or given.weights
    known = {
        "weights": given.weights,
        "classifier": of_classifier and f"--model {given.classifier} --weights {of_classifier}",
    }
    with tempfile.TemporaryDirectory() as made:
        data = write_dataset(Path(made, "data"), product="washer", n_train=given.images)
        if importlib.util.find_spec("cv2") is not None:
            write_video(sorted(data.glob("test/*/*.png")), Path(made, "v.avi"))
        print(f"| command | peak MB |\n|---|---|\n| `import torch` alone | {peak_of(['-c', 'import torch']):.0f} |")
        for name, text in CALLS.items():
            is_left_out = given.only and name not in ("fit", *given.only)
            is_left_out |= any(f"{{{name}}}" in text for name, value in known.items() if value is None)
            is_left_out |= "v.avi" in text and not Path(made, "v.avi").exists()
            if is_left_out:
                continue
            words = text.format(data=data, out=made, **known).split()
            print(f"| `{name}` | {peak_of(['-m', 'blemish', *words]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
