"""What sharing features saves: five methods in one study against five studies of one method, each in fresh processes.

    BLEMISH_WEIGHTS=weights python benchmarks/study_sharing.py mtd --backbone resnet18

Both ways must find the same figures. Metrics and intervals are part of both. Decoding and the network are shared; a
method that takes long by itself, as spade does, takes as long either way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from blemish.study.plan import split_methods

METHODS = "padim,padim,reduction=random,patchcore,knn,gaussian"


def study(data: Path, methods: str, options: argparse.Namespace, out: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds, and the rows."""
    command = [
        *(sys.executable, "-c", "from blemish.cli import app; app()", "study", data, "--methods", methods),
        *("--backbones", options.backbone, "--threads", options.threads, "--resize", options.resize),
        *("--weights", options.weights),
        *("--out", out, "--json"),
    ]
    start = perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return perf_counter() - start, json.loads(done.stdout)["cells"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--resize", default="256")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        together, rows = study(options.data, options.methods, options, Path(folder) / "together")
        alone, others = 0.0, []
        for method in split_methods(options.methods):
            seconds, found = study(options.data, method, options, Path(folder) / method)
            alone += seconds
            others += found
    for row, other in zip(rows, others, strict=True):
        figures = [(row[name], other[name]) for name in ("image_auroc", "pixel_auroc", "au_pro_30", "f1", "threshold")]
        assert all(a == b for a, b in figures), (row["method"], figures)
        costs = f"fit {row['fit_seconds']:6.1f} s   score {row['score_ms']:6.1f} ms an image"
        print(f"{row['method']:10} {row['parameters']:26} {costs}")
    print(f"decode {rows[0]['decode_ms']:.1f} ms, forward {rows[0]['forward_ms']:.1f} ms an image")
    print(f"together {together:.1f} s, alone {alone:.1f} s: {alone / together:.2f} x")


if __name__ == "__main__":
    main()
