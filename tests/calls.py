"""One small call of every command, and what it writes: for tests that attack all of them.

The commands come from the app itself; `test_faults.py` fails where one has no row here.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load as load_tensors

import stripes
import studies
from blemish import persist
from blemish.cli import app
from blemish.datasets.synthetic import write_dataset
from blemish.detector import Detector
from blemish.images.digest import pixel_digest
from blemish.images.preprocess import Preprocess
from blemish.images.source import as_source
from blemish.methods import PaDiM
from blemish.report.lines import judged
from blemish.station.logbook import FILE, Logbook, Verdict
from blemish.study.run import run_study
from blemish.study.store import Store
from test_persist import write_format_2


@dataclass(frozen=True)
class Call:
    """How to call a command; `{data}` and the like are places of `prepare`, `{out}` an empty folder."""

    arguments: str
    writes: str = ""
    """Patterns of the files in `{out}` that are there when it is done."""
    stops_with: str = ""
    """Patterns of what a stopped run may leave for the next one to go on with."""
    begins_with: str = ""
    """A file of `prepare` that lies in `{out}` before."""


_STUDY = "--methods padim,knn --backbones filters --resize 32 --held-out 0.25 --false-alarm-rate 0.25 --no-intervals"
_TAUGHT = "--steps 4 --checkpoint-every 1 --workers 1 --set batch=4 --set image_side=32 --set held_out=0.2"
_COMPACT = "--set widths=[8,8,8] --set blocks=[1,1,0] --set stem=4 --set side=32 --set warmup=1"
_STRIPES = "--model stripes:factory"
_SQLITE = "study.sqlite*"

CALLS = {
    "demo": Call(
        "--out {out} --images 95", "demo.blemish report.html data", "data data/.*.part", begins_with="data"
    ),
    "inspect": Call("{data} --report {out}/i.html --out {out}/list.txt --workers 1", "i.html list.txt"),
    "fit": Call("{data} --backbone filters --resize 32 --false-alarm-rate 0.2 --out {out}/m.blemish", "m.blemish"),
    "update": Call(
        "{out}/model.blemish {more} --held-out {held_out}", "model.blemish", begins_with="model.blemish"
    ),
    "recalibrate": Call(
        "{out}/model.blemish {held_out} --false-alarm-rate 0.2", "model.blemish", begins_with="model.blemish"
    ),
    "forget": Call("{out}/other.blemish {learned}", "other.blemish", begins_with="other.blemish"),
    "feedback": Call(
        "{out}/model.blemish {judged} --fine {fine} --sample {looked} --yes", "model.blemish",
        begins_with="model.blemish",
    ),
    "upgrade": Call("{out}/old.blemish", "old.blemish", begins_with="old.blemish"),
    "predict": Call(
        "{model} {data} --out {out}/r --heatmaps npy --overlays --coco {out}/c.json",
        "r/results.jsonl r/heatmaps r/overlays c.json", "r r/results.jsonl r/heatmaps r/overlays",
    ),
    "explain": Call("{model} {data} --normal {data}/train/good --report {out}/x.html", "x.html"),
    "evaluate": Call("{model} {data} --report {out}/e.html", "e.html"),
    "compare": Call("{model} {other} {data} --repetitions 9 --pixel-repetitions 2 --report {out}/e.html", "e.html"),
    "watch-scores": Call("{model} {lines} --state {out}/d.json", "d.json"),
    "export": Call("{model} --out {out}/m.onnx", "m.onnx run.py"),
    "list": Call("methods"),
    "benchmark": Call("{model} {more} --runtimes torch --batch-sizes 1 --count 2"),
    "choose": Call("{drawn}/board-95-0 --backbone filters --resize 32 --false-alarm-rate 0.2 --workers 1"),
    "study": Call(
        f"{{data}} {_STUDY} --out {{out}}/s", "s/study.sqlite s/study.csv s/tables.md s/plan.toml",
        f"s s/{_SQLITE} s/plan.toml s/study.csv s/tables.md",
    ),
    "report": Call(
        "{study} --out {out}/p", "p/report.html p/report.md p/tables.md p/study.csv",
        "p p/study.csv p/tables.md p/report.html",
    ),
    "ood score": Call(f"{{test}} {_STRIPES} --detector msp --out {{out}}/lines.jsonl", "lines.jsonl"),
    "ood export": Call(f"{_STRIPES} --detector msp --images {{test}} --out {{out}}/m.onnx", "m.onnx run.py"),
    "ood evaluate": Call(
        f"{{test}} {_STRIPES} --outliers {{blobs}} --detectors msp --repetitions 2 --scores {{out}}/kept "
        "--report {out}/o.html", "kept o.html", "kept",
    ),
    "ood tune": Call(
        f"{{test}} {_STRIPES} --detector odin --temperatures 1,2 --eps 0,0.001 --outliers {{blobs}} "
        "--out {out}/t.json --report {out}/o.html", "t.json o.html", "t.json",
    ),
    "ood ablate": Call(f"{{test}} {_STRIPES} --outliers {{blobs}} --detector odin --report {{out}}/o.html", "o.html"),
    "ood reliability": Call(
        f"{{test}} {_STRIPES} --detectors msp --bin-size 9 --report {{out}}/o.html", "o.html"
    ),
    "serve": Call(
        "{model} --store {out}/s --port 0 --device cpu --check", f"s/{FILE}", f"s s/{FILE}*"
    ),
    "watch": Call(
        "{model} {more} --out {out}/w.jsonl --once --settle 0 --every 0 --patience 0", "w.jsonl", "w.jsonl"
    ),
    "stream": Call("{model} {clip} --out {out}/s.jsonl", "s.jsonl", "s.jsonl"),
    "store export": Call("{kept} --out {out}/v.jsonl --pictures {out}/p", "v.jsonl p", "p"),
    "distil descriptor": Call(
        f"{{data}}/train --patch 17 --backbone filters {_TAUGHT} --set width=0.1 --set teacher_side=32 "
        "--set zoom=[1,1] --figure {out}/f.png --out {out}/d.safetensors", "d.safetensors d.json f.png",
        "d.safetensors d.safetensors.checkpoint",
    ),
    "distil backbone": Call(
        f"{{data}}/train --teacher filters {_TAUGHT} {_COMPACT} --figure {{out}}/f.png "
        "--out {out}/c.safetensors", "c.safetensors c.json f.png", "c.safetensors c.safetensors.checkpoint",
    ),
}  # fmt: skip


READS = {
    "--weights", "--roi", "--exclude", "--images", "--plan", "--token-file", "--webhook-token-file",
    "--mqtt-password-file", "--calibration", "--learn-from", "--tuned", "--start",
}  # fmt: skip
"""Options of files that a command reads. Any other option of a file writes it, and is in the call above."""
WRITES_NOTHING = {"list", "choose", "benchmark"}
"""Commands that need no fault injection."""


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command of the app: its name, such as `ood tune`, and its function."""
    yield from _below(app, ())


def _below(group: typer.Typer, names: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for row in group.registered_commands:
        assert row.callback is not None
        yield " ".join([*names, row.name or row.callback.__name__.replace("_", "-")]), row.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _below(inner.typer_instance, (*names, str(inner.name)))


def prepare(folder: Path) -> dict[str, Path]:
    """Make small inputs for all calls; gives their places by name."""
    data, more = folder / "data", folder / "more"
    write_dataset(data, product="washer", n_train=20, n_test_normal=2, n_per_defect=1, size=64)
    for place, seed in ((more, 1), (folder / "held_out", 2)):
        drawn = write_dataset(
            folder / f"drawn{seed}", product="washer", seed=seed, n_train=6, n_test_normal=0, n_per_defect=0, size=64
        )
        shutil.copytree(drawn / "train" / "good", place)
    detector = Detector(method=PaDiM(backbone="filters"), preprocess=Preprocess(32), false_alarm_rate=0.2)
    detector.fit(data).save(folder / "model.blemish")
    looked_at = sorted((folder / "held_out").iterdir())
    decisions = list(detector.predict([*sorted((data / "test").rglob("*.png")), *looked_at]))
    (folder / "judged.jsonl").write_text(
        "".join(json.dumps(judged(decision)) + "\n" for decision in decisions), encoding="utf-8"
    )
    flagged = next(decision.name for decision in decisions if decision.is_anomalous)
    (folder / "fine.txt").write_text(flagged + "\n", encoding="utf-8")
    (folder / "looked.txt").write_text("".join(f"{path}\n" for path in looked_at), encoding="utf-8")
    knn = Detector(method="knn", preprocess=Preprocess(32), false_alarm_rate=0.2).fit(data)
    knn.save(folder / "other.blemish")
    learned = (path for path in sorted((data / "train").rglob("*.png")) if _digest(path) in knn.learned_)
    shutil.copy(next(learned), folder / "learned.png")
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps(judged(decision)) + "\n" for decision in detector.predict(more)), encoding="utf-8"
    )
    tensors, manifest = persist.load(folder / "model.blemish")
    about = {key: value for key, value in manifest.items() if key not in ("format", "digest")}
    write_format_2(folder / "old.blemish", tensors, about)
    plan = studies.plan(folder, data=(str(data),), resize=32)
    with Store(folder / "study" / "study.sqlite") as store:
        run_study(plan, store, executor=studies.Inline())
    with Logbook(folder / "kept") as book:
        book.add([Verdict("m", "d" * 64, None, 1.0, 0.5, False, {"image": "a.png"}, _a_picture(data))]).result()
    images, labels = stripes.stripes(30, 11)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "test" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(folder / "blobs.npz", images=stripes.blobs(20, 12))
    # The demo draws its pictures once; these are smaller ones, and enough for its threshold.
    drawn = shutil.copytree(data, folder / "drawn" / "board-95-0")
    for number, noise in enumerate(np.random.default_rng(0).integers(0, 256, (75, 16, 16), dtype=np.uint8)):
        Image.fromarray(noise).save(drawn / "train" / "good" / f"more{number}.png")
    _write_video(folder / "clip.avi", images[:6])
    stripes.factory()
    return {path.name.partition(".")[0]: path for path in folder.iterdir()}


def _write_video(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(np.broadcast_to(frame.reshape(height, width, -1), (height, width, 3))))
    writer.release()


def _a_picture(data: Path) -> bytes:
    return next((data / "train" / "good").iterdir()).read_bytes()


def _digest(path: Path) -> int:
    return pixel_digest(as_source(path).load(0))


def begin(call: Call, places: dict[str, Path], out: Path) -> list[str]:
    """Make the folder `out` for a call; gives the arguments."""
    out.mkdir()
    if call.begins_with == "data":
        shutil.copytree(places["drawn"], out / "data")
    elif call.begins_with:
        shutil.copy(places[call.begins_with.partition(".")[0]], out / call.begins_with)
    return call.arguments.format(out=out, **places).split()


def files_in(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def check_whole(path: Path) -> None:
    """Raise where a file is torn."""
    if path.name.startswith(("study.sqlite", FILE)):
        with closing(sqlite3.connect(path.with_name(path.name.partition("-")[0]))) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    elif path.suffix in (".png", ".npy", ".npz"):
        Image.open(path).load() if path.suffix == ".png" else np.load(path)
    elif path.suffix in (".blemish", ".checkpoint") or path.name == "d.safetensors":
        persist.load(path)
    else:
        _CHECKS[path.suffix](path.read_bytes())


def _check_end(*ends: bytes) -> Callable[[bytes], None]:
    def check(content: bytes) -> None:
        assert content.rstrip(b" ").endswith(ends)

    return check


_CHECKS: dict[str, Callable[[bytes], object]] = {
    ".safetensors": load_tensors,
    ".json": json.loads,
    ".jsonl": lambda content: [json.loads(line) for line in content.splitlines()],
    ".onnx": onnx.load_model_from_string,
    ".html": _check_end(b"</html>", b"</html>\n"),
    **{suffix: _check_end(b"\n") for suffix in (".md", ".csv", ".toml", ".txt", ".py")},
}
