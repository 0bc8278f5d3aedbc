"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import blemish


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names():
    assert sorted(blemish.__all__) == [
        "Backbone",
        "Batches",
        "BlemishError",
        "Calibration",
        "Decision",
        "Detector",
        "GaussianAD",
        "ImageBatch",
        "ImageSource",
        "KNN",
        "METHODS",
        "PaDiM",
        "PatchCore",
        "Preprocess",
        "SPADE",
        "Scores",
        "custom_backbone",
        "evaluate",
        "from_arrays",
        "from_folder",
        "from_manifest",
        "from_paths",
        "open_dataset",
        "write_report",
    ]
    for name in blemish.__all__:
        assert getattr(blemish, name).__name__ == name if name != "METHODS" else "padim" in blemish.METHODS


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(blemish, "Padim")


def test_importing_loads_nothing_heavy():
    loaded = run("import sys, blemish; print(sorted({m.split('.')[0] for m in sys.modules}))")
    assert not {"torch", "numpy", "PIL", "typer"} & set(eval(loaded))


def test_command_line_help_loads_no_torch():
    code = "import sys, blemish.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run(code).split() == ["False", "False"]


def test_a_method_loads_only_what_it_needs():
    code = "import sys, blemish.methods.padim; print([m for m in sys.modules if m.startswith('blemish.')])"
    rooms = {name.split(".")[1] for name in eval(run(code))}
    below = {"_compat", "errors", "features", "images", "memory", "ops", "optimise", "persist", "types"}
    assert rooms == {"methods", *below}
