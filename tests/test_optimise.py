from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from blemish import persist
from blemish.errors import ArgumentError, ModelFileError, TrainingError
from blemish.training import loop
from blemish.training.loop import SGD, Adam, Checkpoint, Cosine, Drops, Recipe, Watch, batch_of, generator, optimise
from reference import optimise as reference


class Killed(BaseException):
    """Like the signal, but within the process."""


def network(seed=0):
    """Dropout and BatchNorm: random numbers and buffers that a resumed run must find again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def objective_of(module, *, seed=0, die_at=None):
    """Two terms over noisy batches of fixed data."""
    data = torch.randn(20, 6, generator=torch.Generator().manual_seed(7))

    def objective(step):
        if step == die_at:
            raise Killed
        rows = data[batch_of(20, 8, seed=seed, step=step)]
        out = module(rows + 0.1 * torch.randn(rows.shape, generator=generator(seed, step)))
        return {"near": (out - rows[:, :2]).square().mean(), "small": 0.01 * out.abs().sum()}

    return objective


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


RECIPES = {
    "adam": Recipe(optimiser=Adam(rate=0.01, weight_decay=1e-3), schedule=Cosine(steps=23, warmup=4)),
    "adamw": Recipe(optimiser=Adam(rate=0.01, weight_decay=0.1, decoupled=True), precision="bfloat16"),
    "sgd": Recipe(optimiser=SGD(rate=0.1, momentum=0.9), schedule=Drops(at=(9,)), clip_norm=0.5),
    "scaled": Recipe(optimiser=SGD(rate=0.1), precision="float16"),
}


# The same result after a kill


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("die_at", [0, 3, 10, 22])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, recipe, die_at):
    whole = network()
    expected = optimise(objective_of(whole), whole, steps=23, recipe=recipe)
    checkpoint = Checkpoint(path=tmp_path / "c", every=5, identity={"data": "x"})
    module = network()
    with pytest.raises(Killed):
        optimise(objective_of(module, die_at=die_at), module, steps=23, recipe=recipe, checkpoint=checkpoint)
    torch.randn(11)  # a new process has another random state
    module = network()
    course = optimise(objective_of(module), module, steps=23, recipe=recipe, checkpoint=checkpoint)
    assert same(weights(module), weights(whole))
    assert torch.equal(course.losses, expected.losses)
    assert course.losses.shape == (23, 2)
    assert (course.terms, course.steps, course.ended) == (("near", "small"), 23, "steps")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_finished_run_is_not_trained_again_and_may_be_prolonged(tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "c")
    module, whole = network(), network()
    optimise(objective_of(whole), whole, steps=12)
    optimise(objective_of(module), module, steps=8, checkpoint=checkpoint)
    again = network()
    course = optimise(objective_of(again, die_at=8), again, steps=8, checkpoint=checkpoint)
    assert course.steps == 8
    assert same(weights(again), weights(module))
    again = network()
    optimise(objective_of(again), again, steps=12, checkpoint=checkpoint)
    assert same(weights(again), weights(whole))
    again = network()
    with pytest.raises(
        ModelFileError, match=r"c: expected at most 11 steps done, got 12. Ask for more steps, or delete"
    ):
        optimise(objective_of(again), again, steps=11, checkpoint=checkpoint)


SCRIPT = """
import os, signal, sys, torch
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_optimise as t
module = t.network()
inner = t.objective_of(module)
def objective(step):
    if step == {die_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(step)
checkpoint = t.Checkpoint(path=Path({path!r}), every=5)
t.optimise(objective, module, steps=23, recipe=t.RECIPES["adam"], checkpoint=checkpoint)
"""


@pytest.mark.heavy  # by default, `Killed` within the process stands for it
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_killed_process_is_taken_up_by_another(tmp_path):
    whole, again = network(), network()
    optimise(objective_of(whole), whole, steps=23, recipe=RECIPES["adam"])
    code = SCRIPT.format(tests=str(Path(__file__).parent), path=str(tmp_path / "c"), die_at=17)
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert int(persist.load(tmp_path / "c")[0]["step"]) == 15
    checkpoint = Checkpoint(path=tmp_path / "c", every=5)
    optimise(objective_of(again), again, steps=23, recipe=RECIPES["adam"], checkpoint=checkpoint)
    assert persist.digest(again.state_dict()) == persist.digest(whole.state_dict())


def test_the_callers_random_state_is_left_alone():
    module = network()
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    optimise(objective_of(module), module, steps=2)
    assert torch.equal(torch.randn(4), expected)


def test_another_seed_is_another_run():
    first, second = network(), network()
    optimise(objective_of(first), first, steps=3, seed=0)
    optimise(objective_of(second), second, steps=3, seed=1)
    assert not same(weights(first), weights(second))


def test_batches_hold_every_item_once_a_round():
    drawn = torch.cat([batch_of(10, 4, seed=5, step=step) for step in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert torch.equal(
        batch_of(3, 7, seed=0, step=2), torch.cat([batch_of(3, 1, seed=0, step=s) for s in range(14, 21)])
    )


# Formulas


def quadratic():
    """Loss |A w - b|^2 / 2 and its gradient in plain numbers."""
    matrix, target = [[2.0, 0.5], [0.3, 1.0], [1.0, -1.0]], [1.0, -2.0, 0.5]

    def gradient_at(w):
        residual = [row[0] * w[0] + row[1] * w[1] - b for row, b in zip(matrix, target, strict=True)]
        return [sum(r * row[i] for r, row in zip(residual, matrix, strict=True)) for i in range(2)]

    a, b = torch.tensor(matrix, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    module = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(module.weight, 3.0)
    return module, lambda _step: (a @ module.weight[0] - b).square().sum() / 2, gradient_at


@pytest.mark.parametrize("clip", [0.5, 2.0, 1e9])
def test_clipped_steps_against_a_hand_computation(clip):
    module, objective, gradient_at = quadratic()
    recipe = Recipe(optimiser=SGD(rate=0.1, momentum=0.9, weight_decay=0.01), schedule=Drops(at=(3, 5)), clip_norm=clip)
    optimise(objective, module, steps=7, recipe=recipe)
    rates = [0.1] * 3 + [0.01] * 2 + [0.001] * 2
    expected = reference.sgd([3.0, 3.0], gradient_at, rates=rates, momentum=0.9, weight_decay=0.01, clip=clip)
    assert module.weight[0].tolist() == pytest.approx(expected, rel=1e-5)  # torch adds 1e-6 to the norm


def test_children_are_clipped_each_alone():
    """Two problems in one run with `clip_each` go as they do in runs of their own; with one norm they do not."""
    recipe = Recipe(optimiser=SGD(rate=0.1), clip_norm=0.5)
    (one, objective, _), (two, larger, _) = quadratic(), quadratic()
    for module, loss in ((one, objective), (two, lambda step: 9 * larger(step))):
        optimise(loss, module, steps=4, recipe=recipe)
    ends = {}
    for each in (True, False):
        (first, objective, _), (second, larger, _) = quadratic(), quadratic()

        def both(step, first=objective, second=larger):
            return {"one": first(step), "two": 9 * second(step)}

        optimise(both, nn.ModuleList([first, second]), steps=4, recipe=replace(recipe, clip_each=each))
        ends[each] = torch.cat([first.weight, second.weight])
    assert torch.equal(ends[True], torch.cat([one.weight, two.weight]))
    assert (ends[False] - ends[True]).abs().max() > 0.01


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_cosine_against_a_hand_computation(decoupled):
    module, objective, gradient_at = quadratic()
    recipe = Recipe(
        optimiser=Adam(rate=0.2, weight_decay=0.05, decoupled=decoupled),
        schedule=Cosine(steps=9, end=0.1, warmup=3, start=0.2),
    )
    optimise(objective, module, steps=9, recipe=recipe)
    rates = [0.2 * reference.cosine(step, steps=9, end=0.1, warmup=3, start=0.2) for step in range(9)]
    expected = reference.adam([3.0, 3.0], gradient_at, rates=rates, weight_decay=0.05, decoupled=decoupled)
    assert module.weight[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_the_recorded_losses_are_those_of_each_step():
    module, objective, gradient_at = quadratic()
    course = optimise(objective, module, steps=2, recipe=Recipe(optimiser=SGD(rate=0.1)))
    w = reference.sgd([3.0, 3.0], gradient_at, rates=[0.1], momentum=0, weight_decay=0, clip=1e9)
    again, of_again, _ = quadratic()
    with torch.no_grad():
        expected = [float(of_again(0))]
        again.weight.copy_(torch.tensor([w], dtype=torch.float64))
        expected.append(float(of_again(1)))
    assert course.losses[:, 0].tolist() == pytest.approx(expected, rel=1e-9)
    assert course.terms == ("loss",)


# Aborts


def test_nan_in_the_input_is_named(tmp_path):
    module, checkpoint = network(), Checkpoint(path=tmp_path / "c", every=1)
    inner = objective_of(module)

    def objective(step):
        if step == 3:
            return {"near": module(torch.full((4, 6), torch.nan)).mean(), "small": torch.zeros(())}
        return inner(step)

    with pytest.raises(TrainingError, match=r"^step 3: near = nan. The input of 0 was not finite already. Nothing was"):
        optimise(objective, module, steps=9, checkpoint=checkpoint)
    assert int(persist.load(checkpoint.path)[0]["step"]) == 3
    assert not [part for part in module.modules() if part._forward_hooks]


def test_the_layer_that_makes_an_infinity_is_named():
    class Inverse(nn.Module):
        def forward(self, x):
            return 1 / (x - x)

    module = nn.Sequential(nn.Linear(2, 2), Inverse())
    with pytest.raises(
        TrainingError, match=r"step 0: loss = inf. The output of 1 was not finite, though its input was"
    ):
        optimise(lambda _: module(torch.ones(1, 2)).square().sum(), module, steps=1)


def test_a_formula_outside_the_layers_is_named():
    module = nn.Linear(2, 2)
    with pytest.raises(
        TrainingError, match=r"step 0: b = -inf. All layers that ran took and gave finite numbers: look at"
    ):
        optimise(lambda _: {"a": module(torch.ones(1, 2)).sum(), "b": torch.zeros(()).log()}, module, steps=1)


def test_broken_gradients_name_the_term():
    module = nn.Linear(2, 1)

    def objective(_step):
        out = module(torch.ones(1, 2))
        return {"fine": out.mean(), "root": (out - out.detach()).square().sum().sqrt()}

    with pytest.raises(
        TrainingError, match=r"step 0: the gradient of root is not finite at weight, bias, though the loss"
    ):
        optimise(objective, module, steps=1)


def test_broken_parameters_are_named_and_never_written(tmp_path):
    huge = Recipe(optimiser=SGD(rate=1e38))
    module, _, _ = quadratic()
    module = module.float()
    with pytest.raises(
        TrainingError, match=r"step 1: loss = inf. The parameters weight were not finite before it. Lower"
    ):
        optimise(lambda _: (module.weight - 1).square().sum(), module, steps=5, recipe=huge)
    module, _, _ = quadratic()
    module = module.float()
    with pytest.raises(TrainingError, match=r"step 1: the parameters weight are not finite after it, though loss and"):
        optimise(
            lambda _: (module.weight - 1).square().sum(), module, steps=1, recipe=huge,
            checkpoint=Checkpoint(path=tmp_path / "c"),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_broken_criterion_is_refused():
    module = network()
    watch = Watch(criterion=lambda step: float("nan") if step else 0.0, every=2)
    with pytest.raises(TrainingError, match=r"step 2: the criterion is nan"):
        optimise(objective_of(module), module, steps=4, watch=watch)


def test_an_overflow_in_float16_is_tried_again_at_a_smaller_scale():
    module = nn.Linear(2, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    recipe = Recipe(optimiser=SGD(rate=1e-3), precision="float16")
    rows = torch.full((1, 2), 8.0)  # gradients of 16 times the first scale, 65536, are beyond float16
    optimise(lambda _: module(rows).float().square().sum(), module, steps=1, recipe=recipe)
    assert module.weight.tolist() == [[1.0, 1.0]]
    optimise(lambda _: module(rows).float().square().sum() / 1e5, module, steps=1, recipe=recipe)
    assert module.weight[0, 0] < 1


# Time, progress


class Clock:
    """A second passes between two looks at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_the_time_limit_ends_cleanly_and_the_run_goes_on_later(tmp_path, monkeypatch):
    whole = network()
    optimise(objective_of(whole), whole, steps=9)
    checkpoint = Checkpoint(path=tmp_path / "c", every=100)
    module = network()
    monkeypatch.setattr(loop, "monotonic", Clock())
    course = optimise(objective_of(module), module, steps=9, checkpoint=checkpoint, time_limit=7)
    assert course.ended == "time"
    assert 0 < course.steps < 9
    assert len(course.losses) == course.steps
    module = network()
    later = optimise(objective_of(module), module, steps=9, checkpoint=checkpoint, time_limit=1000)
    assert later.ended == "steps"
    assert later.seconds > course.seconds > 0
    assert same(weights(module), weights(whole))


def test_progress_tells_terms_and_remaining_time(monkeypatch):
    module, told = network(), []
    monkeypatch.setattr(loop, "monotonic", Clock())
    course = optimise(objective_of(module), module, steps=4, progress=told.append)
    assert [p.step for p in told] == [1, 2, 3, 4]
    assert told[0].steps == 4
    assert [list(p.terms.values()) for p in told] == course.losses.tolist()
    assert told[1].loss == pytest.approx(float(course.losses[1].sum()))
    assert told[0].seconds_left == 3 * 3  # three looks at the clock a step
    assert told[-1].seconds_left == 0


# Checkpoints of others


def test_a_foreign_checkpoint_is_refused_and_the_difference_named(tmp_path):
    path = tmp_path / "c"
    module = network()
    optimise(objective_of(module), module, steps=2, checkpoint=Checkpoint(path=path, identity={"images": "abc"}))

    def again(seed=0, recipe=None, identity="abc", weights=0):
        module = network(weights)
        checkpoint = Checkpoint(path=path, identity={"images": identity})
        optimise(objective_of(module), module, steps=3, seed=seed, recipe=recipe, checkpoint=checkpoint)

    with pytest.raises(
        ModelFileError, match=r"c: a checkpoint of another run, which differs in seed \(0 there, 1 here\)"
    ):
        again(seed=1)
    with pytest.raises(ModelFileError, match=r"differs in images \(abc there, def here\). Go on with the settings"):
        again(identity="def")
    with pytest.raises(ModelFileError, match=r"differs in recipe \(Recipe\(optimiser=Adam\(rate=0.0001"):
        again(recipe=Recipe(clip_norm=1.0))
    with pytest.raises(ModelFileError, match=r"differs in initial weights"):
        again(weights=1)
    again()


def test_damaged_and_wrong_files_are_refused(tmp_path):
    path = tmp_path / "c"
    module = network()

    def again():
        module = network()
        optimise(objective_of(module), module, steps=3, checkpoint=Checkpoint(path=path))

    optimise(objective_of(module), module, steps=2, checkpoint=Checkpoint(path=path))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"c: damaged, the content does not match its digest"):
        again()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match=r"c: damaged, its header would have .* the file is cut off"):
        again()
    persist.save(path, {"a": torch.zeros(2)}, {"method": "padim"})
    with pytest.raises(ModelFileError, match=r"c: not a checkpoint of a training run. Choose another file"):
        again()
    path = tmp_path / "nowhere" / "c"
    with pytest.raises(ArgumentError, match=r"checkpoint: expected a file in an existing folder, got .*nowhere"):
        again()


# The watch


CRITERIA = {0: 5.0, 3: 2.0, 6: 1.0, 9: 1.5, 12: 1.0, 15: 0.5}


def watched(**options):
    module, seen = network(), {}

    def criterion(step):
        seen[step] = weights(module)
        return CRITERIA[step]

    return module, seen, Watch(criterion=criterion, every=3, **options)


def test_the_best_state_is_kept_and_a_run_without_a_new_best_stops():
    module, seen, watch = watched(patience=2)
    course = optimise(objective_of(module), module, steps=99, watch=watch)
    assert course.ended == "watch"
    assert course.looks == ((0, 5.0), (3, 2.0), (6, 1.0), (9, 1.5), (12, 1.0))
    assert course.best == (6, 1.0)
    trained = {name: tensor for name, tensor in seen[6].items() if "num_batches" not in name}
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in trained.items())
    assert not same(seen[6], seen[12])


def test_the_last_state_stays_where_the_best_is_not_wanted():
    module, seen, watch = watched(patience=2, keep_best=False)
    optimise(objective_of(module), module, steps=99, watch=watch)
    assert same(weights(module), seen[12])


def test_none_stops():
    module = network()
    watch = Watch(criterion=lambda step: None if step == 4 else -step, every=2)
    course = optimise(objective_of(module), module, steps=99, watch=watch)
    assert (course.steps, course.ended, course.best) == (4, "watch", (2, -2.0))


@pytest.mark.parametrize("die_at", [7, 10, 13])
def test_the_best_state_survives_a_kill(tmp_path, die_at):
    whole, seen, watch = watched()
    optimise(objective_of(whole), whole, steps=14, watch=watch)
    assert same(weights(whole), seen[6])
    checkpoint = Checkpoint(path=tmp_path / "c", every=1)
    module, _, watch = watched()
    with pytest.raises(Killed):
        optimise(objective_of(module, die_at=die_at), module, steps=14, watch=watch, checkpoint=checkpoint)
    module, _, watch = watched()
    course = optimise(objective_of(module), module, steps=14, watch=watch, checkpoint=checkpoint)
    assert same(weights(module), weights(whole))
    assert [step for step, _ in course.looks] == [0, 3, 6, 9, 12]


def test_buffers_that_the_watch_writes_are_in_the_checkpoint(tmp_path):
    def build():
        module = network()
        module.register_buffer("radius", torch.zeros(()))

        def criterion(step):
            module.radius += step
            return 0.0

        return module, Watch(criterion=criterion, every=2, keep_best=False)

    module, watch = build()
    checkpoint = Checkpoint(path=tmp_path / "c", every=3)
    with pytest.raises(Killed):
        optimise(objective_of(module, die_at=5), module, steps=6, watch=watch, checkpoint=checkpoint)
    module, watch = build()
    optimise(objective_of(module), module, steps=6, watch=watch, checkpoint=checkpoint)
    assert float(module.radius) == 2 + 4 + 6


# What goes in


def test_frozen_parameters_stay_and_are_not_in_the_checkpoint(tmp_path):
    module = network()
    module[0].requires_grad_(False)
    before = weights(module[0])
    optimise(objective_of(module), module, steps=3, checkpoint=Checkpoint(path=tmp_path / "c"))
    assert same(weights(module[0]), before)
    tensors, _ = persist.load(tmp_path / "c")
    assert "module.0.weight" not in tensors
    assert "module.4.weight" in tensors


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (
            lambda module, _: module.weight.square(),
            r"objective, loss: expected a scalar, got an array of shape \(1, 2\)",
        ),
        (
            lambda _module, _step: torch.zeros(()),
            r"objective: expected a loss that depends on parameters of the module",
        ),
        (
            lambda module, step: {f"{step}": module.weight.sum()},
            r"expected the terms \['0'\] at each step, got \['1'\]",
        ),
    ],
)
def test_a_wrong_objective_is_refused(objective, reason):
    module = nn.Linear(2, 1, bias=False)
    with pytest.raises(ArgumentError, match=reason):
        optimise(lambda step: objective(module, step), module, steps=2)


def test_wrong_arguments_are_refused():
    module = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"module: expected parameters that require gradients, got none"):
        optimise(lambda _: module.weight.sum(), module, steps=1)
    module = nn.Linear(2, 1)
    with pytest.raises(ArgumentError, match=r"precision: expected float32 or bfloat16 or float16, got int8"):
        optimise(lambda _: module.weight.sum(), module, steps=1, recipe=Recipe(precision="int8"))


def test_it_also_trains_within_inference_mode():
    module = network()
    before = weights(module)
    with torch.no_grad():
        optimise(objective_of(module), module, steps=2)
    assert not same(weights(module), before)
