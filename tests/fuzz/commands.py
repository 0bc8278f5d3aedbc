"""Odd command lines through all commands: no traceback, no hang; a result, or one line that says what is wrong.

    python tests/fuzz/commands.py --count 10000 --seed 0 --processes 200

Each begins as the call of `tests/calls.py`, or as nothing, and gets options and values out of the commands' own
signatures: right ones, ends of their ranges, other types, and texts that are meant badly. They run in this process; the
first `--processes` as real ones. What a user may ask for that rightly takes long, or reaches for the network, is not
drawn: many steps, a Ray cluster, a network of the table whose weights are not here.
"""

from __future__ import annotations

import argparse
import inspect
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

import blemish.cli
import studies
from blemish.errors import BlemishError
from blemish.images.preprocess import Preprocess
from blemish.methods import METHODS
from blemish.ood import DETECTORS
from blemish.parameters import parameters_of
from blemish.presets import PRESETS, Preset
from blemish.study.run import LocalExecutor
from calls import CALLS, begin, commands, prepare
from campaign import limit_memory, stop_at_sigterm

MOST_WAITING = 20.0  # by the clock
LONGEST = 3600  # of a real process, which has the whole demo among its work, on the busiest machine
MOST_SECONDS = 2.0  # of this process, so that a busy machine finds nothing; for what is no work that was asked for
LONG = ("steps", "epochs", "repetitions", "images", "every", "pretrain", "warm_up", "batches", "ray", "blocks")
"""What may rightly take long."""

WHOLE = ("0", "1", "-1", "2", "3", "16", "17", "31", "64", "1000", "99999999", str(2**31), str(2**63), str(10**30))
NUMBERS = (*WHOLE, "0.5", "-0.5", "1e-300", "1e308", "-1e308", "nan", "inf", "-inf", "1e999", "0x10", "1_000", "5e-324")
TEXTS = (
    "", " ", "x", "none", "auto", "random", "exact", "faiss:ivf0", "faiss:flat", "faiss:", "custom:x", "timm:x", "cpu",
    "cuda:9", "meta", "\u00b2", "\u0663", "\u00e9", "\udcff", "\x1b[31m", "a\nb", "%s%n", "{x}", "[1,2]", "[", "(((((a",
    "=", "a=b", ",", ",,", "+", "1,2", "16x16", "0x0", "16x", "x16", "99999x99999", "a" * 5000, "--help", "-", "--",
    "[" * 5000, "file:///x", "http://a..b/", "9" * 20,
    "../../etc/passwd", "level1", "level3,level1", "level1,level1", "good", "folders", "1 2", "(.*)", "(.*", "(?P<a>.)",
)  # fmt: skip
FAST = {
    "fit": "{data} --backbone filters --resize 16 --false-alarm-rate 0.2 --out {out}/m.blemish",
    "evaluate": "{model} {data}",
    "inspect": "{data} --workers 1",
    "report": "{nothing}",
    "demo": "--out {out} --product washers",
    "ood tune": "{test} --model stripes:factory --detector odin --temperatures 1 --eps 0 --limit 4 --out {out}/t.json",
    "ood ablate": "{test} --model stripes:factory --outliers {blobs} --detector odin --limit 4",
    "ood reliability": "{test} --model stripes:factory --detectors msp --bin-size 9",
    "ood evaluate": "{test} --model stripes:factory --outliers {blobs} --detectors msp --repetitions 2",
    "distil descriptor": "{nothing} --patch 17 --backbone filters --steps 1 --out {out}/d.safetensors",
}
"""In place of the longest calls: without their reports, and to a mistake where the work is long."""


ENDLESS = {"serve": "--check", "watch": "--once", "stream": "--frames=5"}
"""Commands that go on until they are told to end, and what makes them end by themselves."""


class Option(typing.NamedTuple):
    """One option or argument of a command."""

    name: str
    """Empty for an argument."""
    kind: Any
    is_list: bool


def options_of(function: Callable[..., Any]) -> list[Option]:
    """What a command takes, by its signature."""
    hints, found = typing.get_type_hints(function, include_extras=True), []
    for name in inspect.signature(function).parameters:
        kind, info = typing.get_args(hints[name])[:2]
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        kind = inner[0] if type(None) in typing.get_args(kind) and len(inner) == 1 else kind
        is_list = typing.get_origin(kind) is list
        if is_list:
            (kind,) = typing.get_args(kind)
        known = [text for text in info.param_decls or () if text.startswith("--")]
        option = "" if isinstance(info, typer.models.ArgumentInfo) else (known or [f"--{name.replace('_', '-')}"])[0]
        found.append(Option(option.partition("/")[0], kind, is_list))
    return found


def value_of(option: Option, draw: random.Random, paths: list[str]) -> str:
    """A value, mostly of the option's own type."""
    kind = option.kind if draw.random() < 0.85 else draw.choice((str, int, float, Path))
    if option.name in SPECS and draw.random() < 0.8:
        return spec(option.name, draw)
    if kind is Path:
        return draw.choice(paths)
    if typing.get_origin(kind) is Literal:
        return str(draw.choice((*typing.get_args(kind), "x", "")))
    if kind in (int, float):
        is_long = option.name.strip("-").replace("-", "_") in LONG
        return draw.choice(("0", "-1", "2", "x", "nan")) if is_long else draw.choice(WHOLE if kind is int else NUMBERS)
    return draw.choice((*TEXTS, *paths, *NUMBERS))


SPECS: dict[str, dict[str, type]] = {
    "--set": {**METHODS}, "--methods": {**METHODS}, "--detector": {**DETECTORS}, "--detectors": {**DETECTORS},
}  # fmt: skip
"""Options that name methods or detectors, or their parameters."""


def spec(option: str, draw: random.Random) -> str:
    """`KEY=VALUE` for `--set`, mostly of PaDiM, which is the default; `NAME,KEY=VALUE` for the others."""
    name = draw.choice(list(SPECS[option]))
    if option == "--set":
        return assignment(METHODS["padim" if draw.random() < 0.5 else name], draw)
    return f"{name},{assignment(SPECS[option][name], draw)}" if draw.random() < 0.7 else name


def assignment(kind: type, draw: random.Random) -> str:
    """A parameter of a method or detector, and a value."""
    name = draw.choice([name for name in parameters_of(kind) if name not in LONG] or ["x"])
    return f"{name}={draw.choice((*NUMBERS, *TEXTS, 'true', 'unfold', 'float16', 'int8', 'orthogonal', 'nystroem'))}"


def changed(start: list[str], options: list[Option], draw: random.Random, paths: list[str]) -> list[str]:
    """What stands behind a command: a good line that is changed, or nothing but options."""
    words = list(start) if draw.random() < 0.75 else []
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        option, what = draw.choice(options), draw.randrange(8)
        if what == 0 and words:
            words.pop(draw.randrange(len(words)))
        elif what == 1 and words:
            words[draw.randrange(len(words))] = draw.choice((*TEXTS, *paths))
        elif not option.name:
            words.insert(0, value_of(option, draw, paths))
        elif option.name == "--ray":
            continue
        elif option.kind is bool:
            words.append(option.name)
        else:
            words += [option.name, value_of(option, draw, paths)]
    return words


class Fault(Exception):
    """What must not happen."""


class Hang(BaseException):
    """Something waits, and may do so for ever."""


@contextmanager
def limited() -> Iterator[None]:
    """End what waits for what never comes, such as the other end of a pipe, where the system can."""

    used = time.process_time()

    def ring(*_: object) -> None:
        nonlocal used
        before, used = used, time.process_time()
        if used - before < 0.02:  # it does nothing; on a busy machine, what works has done something by now
            raise Hang

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, MOST_WAITING, MOST_WAITING)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def judge(status: int, error: BaseException | None, said: str) -> str:
    """What came of a command line; raises `Fault`."""
    if error is not None and not isinstance(error, SystemExit):
        lines = "".join(traceback.format_tb(error.__traceback__)[-3:])
        raise Fault(f"{error!r}\n{lines}")
    if "Traceback (most recent call last)" in said:
        raise Fault(said[-2000:])
    if status == 1 and "error: " not in said and "failed" not in said:
        raise Fault(f"ended with 1 and no error: {said[-500:]}")
    if status not in range(5):
        raise Fault(f"ended with {status}: {said[-500:]}")
    return ("done", "refused", "wrong use", "anomalous", "not judged")[status]


def in_process(words: list[str]) -> str:
    """Run a command line here; raises `Fault`."""
    start = time.process_time()
    try:
        with limited():
            done = CliRunner().invoke(blemish.cli.app, words)
    except Hang as hang:
        raise Fault(f"waits: {''.join(traceback.format_tb(hang.__traceback__)[-4:])}") from hang
    seconds = time.process_time() - start
    how = judge(done.exit_code, done.exception, done.output)
    if seconds > MOST_SECONDS and how != "done":
        raise Fault(f"took {seconds:.1f} s before it was {how}: {done.output[-300:]}")
    return how


def as_process(words: list[str]) -> str:
    """Run a command line in a process of its own; raises `Fault`."""
    command = [sys.executable, "-m", "blemish", *words]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired as hang:
        raise Fault(f"took more than {LONGEST} s") from hang
    return judge(done.returncode, None, (done.stdout + done.stderr).decode("utf-8", "replace"))


def odd_paths(places: dict[str, Path], out: Path) -> list[str]:
    """Good inputs, and what is none."""
    here = places["data"].parent
    (here / "text.txt").write_text("0.png\n")
    (here / "broken.blemish").write_bytes(places["model"].read_bytes()[:-9])
    (here / "empty").mkdir()
    (here / "empty.blemish").touch()
    os.mkfifo(here / "pipe.png")
    (here / "loop").symlink_to("loop")
    (here / "plan.toml").write_text('data = ["x"]\nmethods = ["padim"]\nseeds = [1e9]\n')
    (here / "bad.toml").write_bytes(b"data = [\xff")
    (here / "deep.json").write_text("[" * 5000)
    (here / "deep.jsonl").write_text("[" * 5000 + "\n")
    (here / "deep.toml").write_text("x = " + "[" * 5000)
    made = ("text.txt", "broken.blemish", "empty", "empty.blemish", "pipe.png", "loop", "plan.toml", "bad.toml")
    made += ("deep.json", "deep.jsonl", "deep.toml")
    inside = [str(here / name) for name in made]
    wrong = ["", ".", "nowhere/below", "x" * 300, "\udcff", "a\nb", str(out / "new"), str(out / "new" / "deep")]
    classes = [f"{places['test']}:one-class=0", f"{places['test']}:all-but=9", f"{places['data']}:one-class=*"]
    return [*map(str, places.values()), *inside, *wrong, *classes]


def fuzz(count: int, *, seed: int, processes: int = 0, first: int = 0) -> Iterator[tuple[str, str]]:
    """Run the command lines up to `count`; gives what came of each, by command, and what was wrong."""
    known = [(name, options_of(function)) for name, function in commands()]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, out = Path(made), Path(made, "out")
        (folder / "in").mkdir()
        places = prepare(folder / "in")
        places["nothing"] = folder / "in" / "empty"
        paths = odd_paths(places, out)
        try:
            for number in range(first, count):
                draw = random.Random(f"{seed} {number}")
                name, options = draw.choice(known)
                shutil.rmtree(out, ignore_errors=True)
                start = begin(CALLS[name], places, out)
                if name in FAST:
                    start = FAST[name].format(out=out, **places).split()
                words = [*name.split(), *changed(start, options, draw, paths)]
                os.chdir(out)
                if name in ENDLESS:
                    words.append(ENDLESS[name])
                is_process = number < processes
                try:
                    yield f"{name}: {as_process(words) if is_process else in_process(words)}", ""
                except Fault as fault:
                    yield f"{name}: FAULT", f"line {number} of seed {seed}: {words!r:.600}\n    {fault}"
                finally:
                    os.chdir(before)
        finally:
            os.chdir(before)


def main() -> int:
    """Run from the command line; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="so many of them run as real processes")
    parser.add_argument("--first", type=int, default=0, help="the line to begin with, where another run stopped")
    given = parser.parse_args()
    stop_at_sigterm()
    torch.set_num_threads(1)
    PRESETS["default"] = Preset("small", preprocess=Preprocess(16))  # else what is left out takes long
    LocalExecutor.run = lambda self, group: studies.Inline().run(group)  # type: ignore[method-assign]
    blemish.cli.OSError = BlemishError  # type: ignore[attr-defined]  # an error of the system is not one of our own
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(blemish.cli.__file__).parents[2]), root])
    limit_memory(8 << 30)
    counts, faults = Counter[str](), 0
    try:
        for found, wrong in fuzz(given.count, seed=given.seed, processes=given.processes, first=given.first):
            counts[found] += 1
            faults += bool(wrong)
            if wrong:
                print(f"FAULT {wrong}", flush=True)
    finally:  # also where somebody stops it
        for name, times in sorted(counts.items()):
            print(f"{name:30} {times:6}")
        done = counts.total()
        real = max(0, min(done, given.processes - given.first))
        spent = f"{time.process_time():.0f} s of work in this one"
        print(f"{done} command lines, {real} as real processes, {faults} faults; {spent}")
    return min(1, faults)


if __name__ == "__main__":
    sys.exit(main())
