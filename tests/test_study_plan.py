from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from blemish.datasets.dataset import Dataset
from blemish.errors import ArgumentError, DatasetError
from blemish.features.backbones import find_backbone
from blemish.images.preprocess import Preprocess
from blemish.study.group import prepared
from blemish.study.plan import Cell, StudyPlan, groups, split_methods


def plan(**changes):
    return StudyPlan(**{"data": ("/data/a",), "methods": ("padim",), "backbones": ("filters",), **changes})


def test_cells_are_the_product_in_the_order_of_the_lists():
    cells = plan(
        data=("/data/b", "/data/a"),
        backbones=("resnet18", "filters"),
        methods=("padim", "knn"),
        taps=("default", "level1+level2"),
        seeds=(1, 0),
    ).cells()
    assert len(cells) == len({cell.key for cell in cells}) == 32
    found = [(c.dataset, c.backbone, c.method, c.taps, c.seed) for c in cells]
    assert found[:3] == [
        ("/data/b", "resnet18", "padim", None, 1),
        ("/data/b", "resnet18", "padim", None, 0),
        ("/data/b", "resnet18", "padim", ("level1", "level2"), 1),
    ]
    assert found[-1] == ("/data/a", "filters", "knn", ("level1", "level2"), 0)


def test_a_cell_keeps_its_key():
    """A changed key would make every stored study begin anew."""
    cell = Cell(
        dataset="/data/a",
        method="padim",
        parameters=(("dimensions", 50),),
        backbone="resnet18",
        weights="pretrained",
        taps=("layer1",),
        seed=0,
        resize=256,
        crop=None,
        held_out=0.2,
        false_alarm_rate=0.05,
        intervals=True,
        repetitions=0,
    )
    assert cell.key == "60517c612b93d430"
    assert str(cell) == "a padim,dimensions=50 resnet18 layer1 seed 0"


def test_keys_do_not_depend_on_the_process():
    code = (
        "from json import dumps; from blemish.study.plan import StudyPlan;"
        "print(dumps([c.key for c in StudyPlan(**%r).cells()]))"
    )
    arguments = {"data": ("/data/a",), "methods": ("padim,sigma=2,eps=0.1",), "seeds": (0, 1)}
    done = subprocess.run([sys.executable, "-c", code % arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [cell.key for cell in StudyPlan(**arguments).cells()]


def test_the_same_combination_comes_once():
    same = ("padim", "padim,eps=none", "padim,reduction=orthogonal", "padim,sigma=4", "padim,sigma=4.0")
    assert len(plan(methods=same, data=("/data/a", "/data/../data/a"), seeds=(0, 0)).cells()) == 1


def test_parameters_are_read_as_numbers_and_sorted():
    (cell,) = plan(methods=("patchcore,starts=10,ratio=0.1,patches=unfold,squared=true",)).cells()
    assert cell.parameters == (("patches", "unfold"), ("ratio", 0.1), ("squared", True), ("starts", 10))


def test_taps_of_a_method_stand_above_those_of_the_plan():
    cells = plan(methods=("knn,taps=level3", "padim"), taps=("level1", "default")).cells()
    assert [(c.method, c.taps) for c in cells] == [("knn", ("level3",)), ("padim", ("level1",)), ("padim", None)]


def test_all_subsets():
    cells = plan(taps=("all-subsets",)).cells()
    assert ["+".join(c.taps) for c in cells] == [
        "level1", "level2", "level3", "level1+level2", "level1+level3", "level2+level3", "level1+level2+level3",
    ]  # fmt: skip


def test_dimensions_go_to_the_methods_that_leave_them_open():
    specs = ("padim", "padim,dimensions=7", "padim,reduction=none", "knn", "patchcore")
    cells = plan(methods=specs, dimensions=(10, 20)).cells()
    assert [c.spec for c in cells] == [
        "padim,dimensions=10",
        "padim,dimensions=20",
        "padim,dimensions=7",
        "padim,reduction=none",
        "knn",
        "patchcore",
    ]


def test_the_paper_preset_brings_crop_and_parameters_and_no_threshold():
    (cell,) = plan(methods=("padim",), preset="paper").cells()
    assert (cell.resize, cell.crop, cell.held_out) == (256, 224, 0.0)
    assert dict(cell.parameters) == {"reduction": "random", "eps": 0.01}
    (cell,) = plan(methods=("padim,preset=paper,eps=0.5",), resize=128, held_out=0.3).cells()
    assert (cell.resize, cell.crop, cell.held_out) == (128, 112, 0.3)
    assert dict(cell.parameters) == {"reduction": "random", "eps": 0.5}


def test_groups_share_what_features_depend_on():
    cells = plan(data=("/data/a", "/data/b"), methods=("padim", "knn", "padim,preset=paper"), seeds=(0, 1)).cells()
    bundles = groups(cells)
    assert [len(group.cells) for group in bundles] == [4, 2, 4, 2]
    assert sorted(c.key for group in bundles for c in group.cells) == sorted(c.key for c in cells)
    assert {c.crop for c in bundles[1].cells} == {224}
    random = plan(methods=("padim", "knn"), weights="random", seeds=(0, 1)).cells()
    assert [[c.seed for c in group.cells] for group in groups(random)] == [[0, 0], [1, 1]]
    precise = plan(methods=("padim", "padim,precision=bfloat16")).cells()
    assert len(groups(precise)) == 2


def test_toml_round_trip(tmp_path):
    full = plan(
        data=(str(tmp_path / 'a "quoted" name'), str(tmp_path / "grün")),
        methods=("padim,dimensions=50", "knn"),
        taps=("default", "all-subsets"),
        dimensions=(10, 20),
        seeds=(0, 1),
        resize=(64, 128),
        held_out=0.1,
        false_alarm_rate=1e-05,
        intervals=False,
        repetitions=10,
    )
    for one in (plan(), full):
        (tmp_path / "plan.toml").write_text(one.text(), encoding="utf-8")
        assert StudyPlan.load(tmp_path / "plan.toml") == one


def test_the_plan_on_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "plan.toml").write_text(example, encoding="utf-8")
    shown = StudyPlan.load(tmp_path / "plan.toml")
    assert {line.split(" = ")[0] for line in example.splitlines()} == set(vars(shown))
    simple = replace(shown, data=("/data/a",), backbones=("resnet18",), seeds=(0,))
    # Seven subsets and the default, of which padim has two each, but layer1 has no 100; the paper preset the same.
    assert Counter(cell.method for cell in simple.cells()) == {"padim": 30, "patchcore": 8, "knn": 8}


def test_paths_in_a_file_are_relative_to_it_and_may_have_stars(tmp_path, monkeypatch):
    for name in ("bottle", "cable", "screw"):
        (tmp_path / "mvtec" / name).mkdir(parents=True)
    (tmp_path / "mvtec" / "license.txt").touch()
    (tmp_path / "plan.toml").write_text('data = ["mvtec/*", "other"]\nmethods = ["knn"]\n')
    monkeypatch.chdir("/")
    cells = StudyPlan.load(tmp_path / "plan.toml").cells()
    assert [c.dataset for c in cells] == [
        str(tmp_path / part) for part in ("mvtec/bottle", "mvtec/cable", "mvtec/screw", "other")
    ]
    with pytest.raises(DatasetError, match=r"visa/\*: expected folders of that name, got none"):
        plan(data=(str(tmp_path / "visa" / "*"),)).cells()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data = [", "plan.toml: not a TOML file"),
        ('methods = ["knn"]', "plan.toml: expected data: a list of texts, 1 or more, got none"),
        ('data = ["a"]', "plan.toml: expected methods: a list of texts, 1 or more, got none"),
        ('data = ["a"]\nmethods = ["knn"]\nbackbone = ["x"]', "plan.toml: expected the keys data, .*, got backbone"),
        ('data = "a"\nmethods = ["knn"]', "plan.toml: data: expected a list of texts, 1 or more, got a"),
        ('data = ["a"]\nmethods = []', "plan.toml: methods: expected a list of texts, 1 or more"),
        ('data = ["a"]\nmethods = ["knn"]\nseeds = [0.5]', "plan.toml: seeds: expected a list of whole numbers"),
        ('data = ["a"]\nmethods = ["knn"]\npreset = "best"', "preset: expected default or paper, got best"),
        ('data = ["a"]\nmethods = ["knn"]\nheld_out = 1.5', r"held_out: expected a number in \[0, 1\) or None"),
        ('data = ["a"]\nmethods = ["knn"]\nresize = "big"', "resize: expected"),
        ('data = ["a"]\nmethods = ["knn"]\nintervals = 3', "intervals: expected true or false, got 3"),
        ('data = ["a"]\nmethods = ["knn"]\nfalse_alarm_rate = "low"', "false_alarm_rate: expected"),
        ('data = ["a"]\nmethods = ["knn"]\nweights = 3', "weights: expected"),
    ],
)
def test_a_wrong_file_is_named_with_the_wrong_key(tmp_path, text, message):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ArgumentError, match=message):
        StudyPlan.load(tmp_path / "plan.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"none\.toml: the file does not exist, expected a plan"):
        StudyPlan.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("padin", "method: expected one of cflow, .*, got padin"),
        ("padim,dimension=5", "method padim: expected a parameter out of .*dimensions.*, preset, got dimension"),
        ("padim,dimensions", "methods padim: expected KEY=VALUE, got dimensions"),
        ("padim,eps=abc", r"method padim, eps: expected a number in \(0, 1e\+06\] or None, got abc"),
        ("padim,seed=3", "method padim: expected a parameter out of .*, got seed"),
        ("padim,preset=own", "method padim, preset: expected default or paper, got own"),
        ("joint", "method joint: reference: expected a folder of class folders, got None"),
        ("ocsvm,approximation=fourier,kernel=poly", "method ocsvm,.*: kernel: expected rbf with .*, got poly"),
    ],
)
def test_a_wrong_method_is_found_before_anything_runs(method, message):
    with pytest.raises(ArgumentError, match=message):
        plan(methods=(method,)).cells()


def test_a_wrong_backbone_is_found_before_anything_runs():
    with pytest.raises(ArgumentError, match=r"backbone: expected .*, got resnet81"):
        plan(backbones=("filters", "resnet81")).cells()


def test_the_thesis_is_one_word_and_stands_for_its_71_rows():
    cells = plan(methods=("padim",), backbones=("thesis", "resnet18", "filters"), preset="paper", seeds=(1024,)).cells()
    assert len(cells) == 72
    assert [cells[0].backbone, cells[-1].backbone] == ["alexnet", "filters"]
    assert {(cell.seed, cell.resize, cell.crop, cell.weights) for cell in cells} == {(1024, 256, 224, "pretrained")}


def test_available_weights_are_those_at_hand_and_random_ones_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mobilenet_v2.pth").touch()
    monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
    backbones = ("thesis:mobilenet_v2", "compact", "filters", "resnet18")
    cells = plan(methods=("padim", "students"), backbones=backbones, weights="available").cells()
    assert [(cell.method, cell.weights) for cell in cells] == [
        ("padim", "pretrained"), ("students", "pretrained"), ("padim", "pretrained"), ("padim", "pretrained"),
        ("padim", "random"),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["students", "deep_svdd"])
def test_a_method_with_a_network_of_its_own_comes_once(method):
    """Whatever backbones, layers and weights the plan has: none of them would change a figure."""
    (cell,) = plan(
        methods=(method,), backbones=("resnet18", "filters"), taps=("all-subsets",), weights="random"
    ).cells()
    assert (cell.taps, cell.weights) == (None, "pretrained")


def test_methods_on_the_command_line():
    assert split_methods("padim,dimensions=100,spade") == ("padim,dimensions=100", "spade")
    assert split_methods("ratio=0.1") == ("ratio=0.1",)


def test_more_dimensions_than_the_layers_have_are_left_out():
    cells = plan(
        backbones=("resnet18",),
        methods=("padim", "knn"),
        taps=("layer1", "layer1+layer2", "conv1"),
        dimensions=(64, 65, 500),
    ).cells()
    assert [(cell.method, cell.taps, dict(cell.parameters).get("dimensions")) for cell in cells] == [
        ("padim", ("layer1",), 64),
        ("padim", ("layer1", "layer2"), 64),
        ("padim", ("layer1", "layer2"), 65),
        *(("padim", ("conv1",), d) for d in (64, 65, 500)),  # a layer that the table does not know
        *(("knn", taps, None) for taps in (("layer1",), ("layer1", "layer2"), ("conv1",))),
    ]


def test_the_images_own_aspect_is_the_default_and_found_for_each_data_set(tmp_path):
    for i in range(3):
        Image.new("L", (100, 40)).save(tmp_path / f"{i}.png")
    dataset = Dataset(tmp_path, "any", tuple(sorted(tmp_path.iterdir())), ())
    (cell,) = plan().cells()
    assert cell.resize == "auto"
    row = find_backbone("filters")
    assert prepared(dataset, cell, row) == Preprocess((160, 400))
    (told,) = plan(resize=64).cells()
    assert prepared(dataset, told, row) == Preprocess(64)
    (paper,) = plan(preset="paper").cells()
    assert prepared(dataset, paper, row) == Preprocess(256, 224)
