"""What a method that trains owns: images in memory, a run with its checkpoint; and how methods are put together."""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from blemish import persist
from blemish.distil.backbone import BackboneRecipe
from blemish.distil.descriptor import DescriptorRecipe
from blemish.errors import ArgumentError, ModelFileError, NotEnoughMemoryError
from blemish.methods import METHODS
from blemish.methods.gaussian_finetune import GaussianFinetune
from blemish.methods.students import Students
from blemish.parameters import parameter, parameters_of, read_texts
from blemish.training.loop import SGD, Recipe, batch_of
from blemish.training.pictures import Pictures, as_bytes
from blemish.training.run import Training, check_checkpoint
from contract.laws import Images
from trained import varied_pixels

PIXELS = varied_pixels(11, 1)


# Images in memory


def read(pixels, **more):
    return Pictures.read(Images(pixels), **{"of": "it", "expected": None, "left": None} | more)


def test_eight_bits_an_image_lose_nothing():
    exact = torch.arange(256).float().div(255).repeat(3).reshape(1, 3, 16, 16)
    assert as_bytes(exact).dtype == torch.uint8
    assert torch.equal(read(exact.repeat(2, 1, 1, 1)).take(torch.tensor([0])), exact)
    assert as_bytes(PIXELS).dtype == torch.float32
    assert torch.equal(read(PIXELS).take(torch.tensor([4, 2])), PIXELS[[4, 2]])


def test_images_come_back_in_their_order_in_parts_and_in_draws():
    pictures = read(PIXELS)
    assert (len(pictures), pictures.size) == (11, (24, 24))
    assert torch.equal(pictures.all(), PIXELS)
    assert [len(part) for part in pictures.batches(4)] == [4, 4, 3]
    assert torch.equal(torch.cat(list(pictures.batches(4))), PIXELS)
    assert torch.equal(pictures.draw(3, 4, seed=5), PIXELS[batch_of(11, 4, seed=5, step=3)])
    assert len(pictures.draw(3, 40, seed=5)) == 11
    assert [pictures.steps(size) for size in (1, 4, 11, 40)] == [11, 3, 1, 1]
    rest, held_out = pictures.split(0.3, seed=2)
    assert (len(rest), len(held_out)) == (8, 3)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    assert torch.equal(held_out.all(), PIXELS[order[:3].sort().values])
    assert torch.equal(rest.all(), PIXELS[order[3:].sort().values])
    assert torch.equal(pictures.subset(torch.tensor([7, 0])).all(), PIXELS[[7, 0]])


def test_a_digest_tells_images_from_others():
    other = PIXELS.clone()
    other[0, 0, 0, 0] += 1e-3
    assert read(PIXELS).digest() == read(PIXELS).digest()
    assert len({read(p).digest() for p in (PIXELS, other, PIXELS.flip(0))}) == 3


def test_what_cannot_be_held_is_refused():
    size = PIXELS[0].numel() * 4
    assert len(read(PIXELS, left=11 * size)) == 11
    with pytest.raises(NotEnoughMemoryError, match=r"it: 11 images in memory take 0\.\d MB; 0\.\d MB are left for it"):
        read(PIXELS, left=11 * size - 1, expected=11)
    with pytest.raises(NotEnoughMemoryError, match="it: 8 images in memory"):  # where nobody said how many will come
        read(PIXELS, left=11 * size - 1)
    with pytest.raises(
        ArgumentError, match=r"images: expected \(24, 24\) pixels, got an array of shape \(1, 3, 8, 8\)"
    ):
        Pictures.read([*Images(PIXELS), *Images(PIXELS[:1, :, :8, :8])], of="it", expected=None, left=None)
    for count, got in ((0, "none"), (1, "1")):
        with pytest.raises(ArgumentError, match=f"images: expected at least 2 normal images, got {got}"):
            read(PIXELS[:count])


# A run


@dataclass(kw_only=True)
class Owner:
    """Whatever trains."""

    name = "owner"
    seed: int = 0
    shape: tuple[int, ...] = (2,)
    device: str = parameter("cpu", role="place")
    checkpoint: Any = parameter(None, role="place")
    time_limit: float | None = parameter(None, role="place")


def run(owner, *, steps=4, content="a", **more):
    torch.manual_seed(0)
    module = nn.Linear(2, 1)

    def objective(step):
        return module(torch.rand(3, 2)).square().mean()

    course = Training.of(owner).run(
        objective, module, steps=steps, recipe=Recipe(optimiser=SGD(rate=0.1)), every=2,
        content={"images": lambda: content}, **more,
    )  # fmt: skip
    return course, module.weight.detach().clone()


def test_a_run_goes_on_wherever_it_is_and_ends_the_same(tmp_path):
    owner = Owner(checkpoint=tmp_path / "c")
    run(owner, steps=2)
    course, weight = run(replace(owner, device="elsewhere", time_limit=1e6))
    assert course.steps == 4
    assert torch.equal(weight, run(Owner())[1])
    assert len(course.losses) == 4


@pytest.mark.parametrize(("changes", "content", "named"), [
    ({"shape": (2, 3)}, "a", r"shape \(\[2\] there, \[2, 3\] here\)"),
    ({"seed": 1}, "a", r"seed \(0 there, 1 here\)"),
    ({}, "b", r"images \(a there, b here\)"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, changes, content, named):
    owner = Owner(checkpoint=tmp_path / "c")
    run(owner)
    with pytest.raises(ModelFileError, match=f"a checkpoint of another run, which differs in {named}"):
        run(replace(owner, **changes), content=content)
    if changes:  # the content is known when the run begins
        with pytest.raises(ModelFileError, match=f"a checkpoint of another run, which differs in {named}"):
            check_checkpoint(owner.checkpoint, replace(owner, **changes))
    else:
        check_checkpoint(owner.checkpoint, replace(owner, **changes))


def test_a_method_refuses_a_checkpoint_before_an_image_is_read(tmp_path):
    nowhere = str(tmp_path / "no folder" / "c")
    with pytest.raises(ArgumentError, match="checkpoint: expected a file in an existing folder"):
        Students(checkpoint=nowhere).check()
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelFileError, match="text: not a model file"):
        Students(checkpoint=str(tmp_path / "text")).check()


@pytest.mark.parametrize("forge", [
    lambda tensors, kept: kept.clear(),
    lambda tensors, kept: kept.pop("stopped"),
    lambda tensors, kept: kept.update(settings=[]),
    lambda tensors, kept: kept.update(terms=[1]),
    lambda tensors, kept: kept.update(seconds="x"),
    lambda tensors, kept: kept.update(scaler={"scale": 1}),
    lambda tensors, kept: tensors.pop("step"),
    lambda tensors, kept: tensors.update(step=torch.ones(2)),
    lambda tensors, kept: tensors.pop("losses"),
    lambda tensors, kept: tensors.update(looks=torch.ones(3)),
    lambda tensors, kept: tensors.pop("module.weight"),
    lambda tensors, kept: tensors.update({"module.weight": torch.ones(1)}),
    lambda tensors, kept: tensors.update({"best.weight": torch.ones(1, 2)}),
    lambda tensors, kept: tensors.update({"optimiser.x.y": torch.ones(1)}),
    lambda tensors, kept: tensors.update({"optimiser.0.momentum_buffer": torch.ones(9)}),
])  # fmt: skip
def test_a_forged_checkpoint_is_an_error_of_our_own(tmp_path, forge):
    owner = Owner(checkpoint=tmp_path / "c")
    run(owner)
    tensors, manifest = persist.load(tmp_path / "c")
    forge(tensors, manifest["run"])
    persist.save(tmp_path / "c", tensors, manifest)
    with pytest.raises(ModelFileError, match=r"[/\\]c: "):
        run(owner)


def test_a_stage_has_its_own_checkpoint(tmp_path):
    owner = Owner(checkpoint=tmp_path / "c")
    run(owner, stage=".first")
    assert [path.name for path in tmp_path.iterdir()] == ["c.first"]


def test_the_time_of_all_stages_counts_from_the_beginning():
    training = Training(Owner(), name="owner", checkpoint=None, time_limit=0.0)
    module = nn.Linear(2, 1)
    settings = {"steps": 3, "recipe": Recipe(), "content": {}, "every": 1}
    courses = [training.run(lambda _: module.weight.sum(), module, **settings) for _ in range(2)]
    assert [(course.steps, course.ended) for course in courses] == [(0, "time"), (0, "time")]


def test_the_last_step_is_told_in_the_log_or_every_step_to_who_asks(caplog):
    with caplog.at_level(logging.INFO, logger="blemish"):
        run(Owner(), stage=".first")
    assert [record.message.partition(", loss")[0] for record in caplog.records] == ["owner.first: step 4 of 4"]
    told = []
    training = Training(Owner(), name="owner", checkpoint=None, time_limit=None, progress=told.append)
    module = nn.Linear(2, 1)
    training.run(lambda _: module.weight.sum(), module, steps=3, recipe=Recipe(), content={}, every=1)
    assert [progress.step for progress in told] == [1, 2, 3]


# How methods are put together


def _overrides(kind):
    """Concrete functions of a base that a class, or a base of it, has written again."""
    line = [base for base in kind.__mro__ if base.__module__.startswith(("blemish", __name__))]
    for i, child in enumerate(line):
        for name, function in vars(child).items():
            if name.startswith("__") or not (inspect.isfunction(function) or hasattr(function, "__func__")):
                continue
            for base in line[i + 1 :]:
                found = vars(base).get(name)
                if inspect.isfunction(found) and not getattr(found, "__isabstractmethod__", False):
                    (written,) = ast.parse(textwrap.dedent(inspect.getsource(found))).body
                    if len(written.body) > 1 or not isinstance(written.body[0].value, ast.Constant):
                        yield f"{child.__name__}.{name} overrides {base.__name__}.{name}"


@pytest.mark.parametrize("name", METHODS)
def test_no_method_overrides_what_another_class_has_written(name):
    assert list(_overrides(METHODS[name])) == []


class Overriding(GaussianFinetune):
    def score(self, batch):
        return super().score(batch)

    def _further_tap(self, row):  # an empty hook
        return None


def test_an_override_is_found():
    assert list(_overrides(Overriding)) == ["Overriding.score overrides FeatureMethod.score"]


@pytest.mark.parametrize("kind", [*METHODS.values(), DescriptorRecipe, BackboneRecipe], ids=lambda kind: kind.__name__)
def test_every_parameter_is_documented(kind):
    assert [name for name, known in parameters_of(kind).items() if not known.meaning] == []


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_the_defaults_are_right_and_numbers_have_bounds(kind):
    needed = {"reference": "somewhere"} if kind is METHODS["joint"] else {}
    kind(**needed).check()
    for name, known in parameters_of(kind).items():
        if known.role == "place" and name in ("checkpoint", "time_limit"):
            continue
        if any(limit is not None for limit in (known.bounds.above, known.bounds.at_least)):
            low = known.bounds.above if known.bounds.at_least is None else known.bounds.at_least
            value = int(low) - 1 if isinstance(known.default, int) else low - 1.0
            with pytest.raises(ArgumentError, match=f"^{name}: expected "):
                kind(**needed, **{name: value}).check()


def test_families_can_be_spelled_and_students_checked():
    assert read_texts(GaussianFinetune, {"families": "cutout+scar"}, of="it") == {"families": ("cutout", "scar")}
    with pytest.raises(ArgumentError, match=r"families: expected some of augmix, cutout, cutpaste, scar or None"):
        GaussianFinetune(families=("blur",)).check()
    with pytest.raises(ArgumentError, match="students: expected a whole number of at least 1"):
        Students(students=0).check()


@pytest.mark.parametrize("kind", [k for k in METHODS.values() if hasattr(k, "checkpoint")], ids=lambda k: k.name)
def test_checkpoint_and_time_limit_are_no_part_of_a_model(kind):
    known = parameters_of(kind)
    assert {known[name].role for name in ("checkpoint", "time_limit", "weights", "device")} == {"place"}
