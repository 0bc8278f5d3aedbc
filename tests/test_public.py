"""The public surface, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import blemish
from blemish.methods.registry import METHODS
from blemish.ood.registry import DETECTORS


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert set(blemish.__all__) == {
        "Backbone", "Batches", "BlemishError", "Calibration", "DETECTORS", "Decision", "Detector", "ImageBatch",
        "ImageSource", "METHODS", "Preprocess", "Scores", "choose", "custom_backbone", "evaluate", "from_arrays",
        "from_folder", "from_manifest", "from_paths", "open_dataset", "write_report",
        *(found.__name__ for found in (*METHODS.values(), *DETECTORS.values())),
    }  # fmt: skip
    assert dir(blemish) == blemish.__all__ == sorted(set(blemish.__all__))
    for name in set(blemish.__all__) - {"METHODS", "DETECTORS"}:
        assert getattr(blemish, name).__name__ == name
    assert (blemish.METHODS, blemish.DETECTORS) == (METHODS, DETECTORS)


def test_all_names_come_with_a_star():
    found = {}
    exec("from blemish import *", found)
    assert found.keys() >= set(blemish.__all__)
    assert (found["PaDiM"].name, found["Energy"].name) == ("padim", "energy")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "blemish", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: blemish" in done.stdout


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(blemish, "Padim")


def test_importing_loads_nothing_heavy():
    loaded = run("import sys, blemish; print(sorted({m.split('.')[0] for m in sys.modules}))")
    assert not {"torch", "numpy", "PIL", "typer"} & set(eval(loaded))


def test_command_line_help_loads_no_torch():
    code = "import sys, blemish.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(code).split() == ["False", "False"]


def layers():
    """Rooms from the highest to the lowest, as the import linter knows them."""
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r'type = "layers"\nlayers = \[(.*?)\]', settings, flags=re.DOTALL)[1]
    return [re.findall(r"blemish\.(\w+)", line) for line in listed.strip().splitlines()]


def test_a_method_loads_only_what_it_needs():
    code = "import sys, blemish.methods.padim; print([m for m in sys.modules if m.startswith('blemish.')])"
    loaded = [name.split(".")[1:] for name in eval(run(code))]
    rooms = layers()
    own = next(i for i, layer in enumerate(rooms) if "methods" in layer)
    assert {name[0] for name in loaded} <= {"methods", *chain.from_iterable(rooms[own + 1 :])}
    assert {name[1] for name in loaded if name[0] == "methods" and len(name) == 2} == {"_base", "padim"}
    assert not {name[0] for name in loaded} & {"training", "augment", "datasets"}, "these serve methods that train"
    others = {"features.runtime", "features.onnx_graph", "features.packages", "features.find_taps", "ops.turns"}
    assert not {".".join(name) for name in loaded} & others, "other runtimes, other packages' networks, other methods"
    assert len(loaded) + 1 <= 20, "docs/design.md says how many, with the package itself"


def test_every_room_has_a_layer():
    listed = [*chain.from_iterable(layers())]
    there = {
        path.stem
        for path in Path(blemish.__file__).parent.iterdir()
        if path.name[:2] != "__" and path.suffix in ("", ".py")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == there
