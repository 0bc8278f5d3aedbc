"""The most memory that each command holds: real processes, on drawn images.

    python benchmarks/peak_memory.py --images 100 --weights resnet18.pth
    python benchmarks/peak_memory.py --images 100 --only export --only watch

`--images` pictures of 256 x 256 pixels to learn from, 76 to test on; the default settings, but for steps and
repetitions. Prints a table, beside what Python and torch hold with nothing done. `--weights` are those of torchvision's
resnet18, for the classifier of `ood` and as a teacher; without them these commands are left out.
"""

from __future__ import annotations

import argparse
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
    "watch-scores": "watch-scores {out}/m.blemish {out}/w.jsonl",  # of defects it would alarm
    "upgrade": "upgrade {out}/m.blemish --out {out}/v.blemish",
    "export": "export {out}/m.blemish --images {data} --out {out}/m.onnx",
    "study (its largest process)": "study {data} --methods padim,knn --out {out}/s",
    "report": "report {out}/s",
    "ood score": "ood score {data}/test --model resnet18 --weights {weights} --out {out}/lines.jsonl",
    "ood evaluate": "ood evaluate {data}/train --model resnet18 --weights {weights} --outliers {data}/test "
    "--detectors msp --report {out}/o.html",
    "ood tune": "ood tune {data}/train --model resnet18 --weights {weights} --outliers {data}/test --limit 20 "
    "--temperatures 1,2 --eps 0,0.001 --out {out}/t.json",
    "distil backbone": "distil backbone {data}/train --teacher resnet18 --weights {weights} --steps 2 "
    "--out {out}/c.safetensors",
    "distil descriptor": "distil descriptor {data}/train --backbone resnet18 --weights {weights} --steps 2 "
    "--out {out}/d.safetensors",
    "fit (1000 x 1000, tiles)": "fit {data} --resize 1000 --tile 256 --false-alarm-rate 0.2 --out {out}/t.blemish",
}


def peak_of(words: list[str]) -> float:
    """Run a command; gives its peak in megabytes."""
    pid = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ, file_actions=_SILENT)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


_SILENT = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]


def main() -> None:
    """Measure one command after the other; later ones need the files of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--only", action="append", choices=CALLS, help="these alone, behind `fit`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        data = write_dataset(Path(made, "data"), product="washer", n_train=given.images)
        print(f"| command | peak MB |\n|---|---|\n| `import torch` alone | {peak_of(['-c', 'import torch']):.0f} |")
        for name, text in CALLS.items():
            is_left_out = given.only and name not in ("fit", *given.only)
            if is_left_out or ("{weights}" in text and given.weights is None):
                continue
            words = text.format(data=data, out=made, weights=given.weights).split()
            print(f"| `{name}` | {peak_of(['-m', 'blemish', *words]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
