"""What CONTRIBUTING promises: a method, a detector or a layout is one file or function, and one line or row.

Each is added to a copy of the package, where the command line, studies, laws and checks of imports must know it. For a
figure, `test_table.py` does so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blemish.datasets.synthetic import write_dataset

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.heavy

METHOD = '''
"""Distance to the mean vector of the normal images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..features.backbones import Backbone
from ..features.patches import pool
from ..parameters import parameter
from ..tensors import check_tensors
from ..types import FeatureMaps, Scores
from ._base import FitPlan, FrozenMethod


@dataclass(kw_only=True)
class Centre(FrozenMethod):
    """Distance to the mean vector.

    Parameters
    ----------
    power: of the distance.
    """

    name: ClassVar[str] = "centre"

    power: float = parameter(2.0, above=0)

    def _default_taps(self, row: Backbone) -> tuple[str, ...]:
        return row.taps

    def _plan(self, first: FeatureMaps, images: int) -> FitPlan:
        vector = 4 * sum(m.shape[1] for m in first.maps)
        return FitPlan(model_bytes=vector, peak_bytes=images * vector)

    def _learn(self, features: Iterator[FeatureMaps], *, expected: int | None) -> None:
        vectors = torch.cat([self._embed(maps) for maps in features])
        self.mean_ = vectors.double().mean(dim=0).float()

    def _score(self, features: FeatureMaps) -> Scores:
        return Scores((self._embed(features) - self.mean_).norm(dim=1) ** self.power, None)

    def _learned(self) -> dict[str, Tensor]:
        return {"mean": self.mean_}

    def _relearn(self, learned: dict[str, Tensor]) -> None:
        check_tensors(learned, {"mean": "float32 n"})
        self.mean_ = learned["mean"]

    def _embed(self, features: FeatureMaps) -> Tensor:
        return torch.cat([pool(m) for m in features.maps], dim=1)
'''

DETECTOR = '''
"""How far the largest logit stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._base import OODDetector, by_rows, read_logits
from .classifier import Outputs

if TYPE_CHECKING:
    from ..types import Floats


@dataclass(kw_only=True)
class MeanLogit(OODDetector):
    """The mean logit minus the largest."""

    name: ClassVar[str] = "mean_logit"

    def _score(self, outputs: Outputs) -> Floats:
        return by_rows(lambda z: z.mean(axis=1) - z.max(axis=1), read_logits(outputs.logits))
'''

LAYOUT = """
def _read_lines(root: Path) -> Dataset:
    return Dataset(root, "lines", tuple(sorted(root.glob("line-ok/*.png"))), ())


LAYOUTS = (Layout("lines", "line-ok/*.png", lambda root: (root / "line-ok").is_dir(), _read_lines), *LAYOUTS)
"""


class Copy:
    """The package, its tests and its settings in another folder, and commands that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def add(self, path: str, text: str) -> None:
        (self.folder / path).write_text(text.lstrip())

    def change(self, path: str, old: str, new: str) -> None:
        text = (self.folder / path).read_text()
        assert text.count(old) == 1
        self.add(path, text.replace(old, new))

    def run(self, *command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout

    def python(self, code: str) -> str:
        self.add("code_.py", code)
        return self.run("code_")


@pytest.fixture
def copied(tmp_path) -> Copy:
    return Copy(tmp_path)


def _draw(copied: Copy) -> Path:
    return write_dataset(
        copied.folder / "drawn", product="leather", n_train=8, n_test_normal=2, n_per_defect=1, size=64
    )


def test_a_method_is_a_file_and_a_line(copied):
    copied.add("src/blemish/methods/centre.py", METHOD)
    copied.change("src/blemish/methods/registry.py", "from .cflow", "from .centre import Centre as Centre\nfrom .cflow")
    drawn = _draw(copied)
    assert "centre" in {
        row["name"] for row in json.loads(copied.run("blemish", "list", "methods", "--json"))["methods"]
    }
    copied.run("blemish", "fit", str(drawn), "--method", "centre", "--set", "power=1", "--calibration", "none",
               "--resize", "64", "--out", "part.blemish")  # fmt: skip
    found = json.loads(copied.run("blemish", "evaluate", "part.blemish", str(drawn), "--json"))
    assert found["image_auroc"] is not None
    copied.run(
        "blemish",
        "study",
        str(drawn),
        "--methods",
        "centre",
        "--seeds",
        "0",
        "--false-alarm-rate",
        "0.5",
        "--out",
        "study",
    )
    assert "centre" in (copied.folder / "study" / "study.csv").read_text()
    assert copied.python("import blemish\nprint('Centre' in dir(blemish), blemish.Centre(power=3).power)") == "True 3\n"
    copied.run("pytest", "tests/contract/test_methods.py", "-k", "centre")
    copied.run("importlinter.cli", "lint-imports", "--no-cache")


def test_a_detector_is_a_file_and_a_line(copied):
    copied.add("src/blemish/ood/mean_logit.py", DETECTOR)
    copied.change(
        "src/blemish/ood/registry.py", "# isort: on", "from .mean_logit import MeanLogit as MeanLogit\n# isort: on"
    )
    assert "mean_logit" in {
        row["name"] for row in json.loads(copied.run("blemish", "list", "detectors", "--json"))["detectors"]
    }
    assert copied.python("import blemish.ood\nprint('MeanLogit' in dir(blemish.ood))") == "True\n"
    copied.run("pytest", "tests/contract/test_ood_detectors.py", "-k", "mean_logit")


def test_a_layout_is_a_row(copied):
    path = "src/blemish/datasets/layouts.py"
    copied.add(path, (copied.folder / path).read_text() + LAYOUT)
    drawn = _draw(copied)
    (drawn / "train" / "good").rename(copied.folder / "line-ok")
    (copied.folder / "set").mkdir()
    (copied.folder / "line-ok").rename(copied.folder / "set" / "line-ok")
    copied.run("blemish", "fit", "set", "--calibration", "none", "--resize", "64", "--out", "part.blemish")
    assert json.loads(copied.run("blemish", "inspect", "set", "--json"))["layout"] == "lines"
