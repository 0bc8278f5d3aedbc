"""End-to-end `predict` (decode, forward, score, smooth, write) against the bare optimised backbone on the same batches.

    python benchmarks/predict_overhead.py DATA --weights resnet18.pth

DATA is in the MVTec layout; the model is fitted on its normal training images. The bare backbone gets ready batches
from memory. Target: ratio <= 1.3. On a shared machine read the ratio of the processor times, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time

from _measure import write

from blemish import Batches, Detector, PaDiM, Preprocess, open_dataset
from blemish.cli.results import ResultWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16, help="the command's own default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    dataset = open_dataset(options.data)
    detector = Detector(method=PaDiM(backbone="resnet18", weights=options.weights), batch_size=options.batch_size)
    detector.fit(dataset.train_images())
    source = dataset.test_images().subset(range(min(options.images, len(dataset.test))))
    batches = list(Batches(source, Preprocess(256), options.batch_size))
    extractor = detector.method_.extractor_

    def backbone() -> None:
        for batch in batches:
            extractor(batch.pixels)

    def predict(folder: Path, model: Path) -> None:
        with ResultWriter(folder, "png", model=model) as writer:
            for decision in detector.predict(source):
                writer.write(decision)

    n, row = len(source), {}
    clocks = {"wall": perf_counter, "processor": process_time}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in clocks}
    with tempfile.TemporaryDirectory() as folder:
        detector.save(model := Path(folder, "padim.blemish"))
        for number in range(options.rounds + 1):
            start = {name: clock() for name, clock in clocks.items()}
            backbone()
            middle = {name: clock() for name, clock in clocks.items()}
            predict(Path(folder, str(number)), model)
            for name, clock in clocks.items():
                times[name].append((middle[name] - start[name], clock() - middle[name]))
    for name, pairs in times.items():
        bare, whole = (statistics.median(pair[i] for pair in pairs[1:]) / n * 1e3 for i in (0, 1))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs[1:])
        print(
            f"{name} time: backbone {bare:.1f} ms an image, predict {whole:.1f} ms, ratio {ratio:.2f} (target <= 1.3)"
        )
        row[name] = {"backbone_ms": bare, "predict_ms": whole, "ratio": ratio}
    write(options.json, row)


if __name__ == "__main__":
    main()
