from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blemish.cli.detector import _make_method
from blemish.errors import ArgumentError, ModelFileError, WeightsError
from blemish.features import descriptors
from blemish.features.descriptors import find_descriptor
from blemish.methods import students as module
from blemish.methods.students import Students, hard_loss, regression_error_and_variance
from blemish.presets import find_preset
from blemish.training.pictures import Pictures, split_off
from blemish.types import ImageBatch
from contract.laws import TRAIN, Images, batch
from reference import scaling as scaling_reference
from reference import students as reference
from small import small_pixels
from trained import TEACHERS

SIZE = (34, 37)


@pytest.fixture
def teachers():
    return Path(TEACHERS)


def fit(teachers, pixels=None, **parameters):
    given = {"steps": 3, "validation": 0.3, "seed": 5, "scale": "global"} | parameters
    return Students(weights=teachers, **given).fit(Images(small_pixels(7, 1, SIZE) if pixels is None else pixels))


def described(scale, pixels):
    """What teacher and students say of every pixel."""
    with torch.no_grad():
        maps = [network.dense(pixels).double().numpy() for network in (scale.teacher, *scale.students)]
    return maps[0], maps[1:]


def expected_map(scale, pixels, *, held_out, targets):
    stride = scale.teacher.stride
    fields = (slice(None), *(2 * (slice((stride - 1) // 2, None, stride),)))  # of these the normalisation is
    normal = [values[fields] for values in reference.errors(*described(scale, held_out), *targets)]
    return reference.score(*reference.errors(*described(scale, pixels), *targets), *normal)


def score(method, pixels):
    n = len(pixels)
    return method.score(ImageBatch(pixels, tuple(map(str, range(n))), (tuple(pixels.shape[2:]),) * n))


# The paper's formulas


def test_equals_the_paper(teachers):
    """With a grid that holds all fields the targets are normalised over every pixel of the training images."""
    pixels, test = small_pixels(7, 1, (18, 21)), small_pixels(2, 2, (18, 21))
    method = fit(teachers, pixels, patches=(17,), grid=99, rate=1e-2)
    learned, held_out = split_off(7, 0.3, seed=5)
    assert (len(learned), len(held_out)) == (5, 2)
    scale = method.scales_[17]
    targets = reference.target_normalisation(described(scale, pixels[learned])[0])
    expected = expected_map(scale, test, held_out=pixels[held_out], targets=targets)
    scores = score(method, test)
    np.testing.assert_allclose(scores.maps.numpy(), expected, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(scores.images.numpy(), expected.max(axis=(1, 2)), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("dense", [False, True])
def test_e_and_v_are_normalised_at_each_position(teachers, dense):
    """Between the fields of the grid their means and factors are enlarged as a map is."""
    pixels, test, size = small_pixels(20, 1, (38, 45)), small_pixels(2, 2, (38, 45)), (38, 45)
    scale = fit(teachers, pixels, scale="position", validation=0.5, dense=dense).scales_[33]
    held_out = pixels[split_off(20, 0.5, seed=5)[1]]
    with torch.no_grad():
        normal, tested = (scale.errors(p, dense=d).double() for p, d in ((held_out, False), (test, dense)))
    expected = torch.zeros(2, *(size if dense else tested.shape[2:]), dtype=torch.float64)
    for number in range(2):
        mean, deviation = map(
            torch.from_numpy, scaling_reference.position_moments(normal[:, number : number + 1].numpy())
        )
        factor = 1 / deviation
        if dense:
            mean, factor = (module._enlarge(part, 4, size) for part in (mean, factor))
        expected += (tested[:, number] - mean) * factor
    expected = expected if dense else module._enlarge(expected, 4, size)
    with torch.no_grad():
        np.testing.assert_allclose(scale.map(test).numpy(), expected.numpy(), rtol=1e-3, atol=2e-3)


def test_a_few_held_out_images_say_nothing_of_positions(teachers):
    pixels = small_pixels(19, 1, SIZE)  # nine or ten of them held out
    few, enough = (fit(teachers, pixels, scale="position", validation=v).scales_[33] for v in (0.47, 0.53))
    assert few.error_mean.shape == (2, 1, 1)
    assert enough.error_mean.shape == (2, 9, 9)


def test_positions_need_images_of_one_size(teachers):
    method = fit(teachers, small_pixels(20, 1, SIZE), scale="position", validation=0.5)
    again = Students(scale="position")
    again.restore(method.state())
    test = small_pixels(2, 2, SIZE)
    assert torch.equal(again.score(batch(test)).maps, method.score(batch(test)).maps)
    with pytest.raises(
        ArgumentError, match=r"images: expected preprocessed images of the fit's size, \(9, 9\) fields of p = 33"
    ):
        again.score(batch(small_pixels(2, 2, (50, 60))))


def test_scores_of_several_patches_are_averaged(teachers):
    pixels, test = small_pixels(7, 1, SIZE), small_pixels(2, 2, SIZE)
    method = fit(teachers, pixels, patches=(33, 65), students=2)
    held_out = split_off(7, 0.3, seed=5)[1]
    maps = []
    for patch in (33, 65):
        scale = method.scales_[patch]
        targets = scale.target_mean.flatten().numpy(), 1 / scale.target_factor.flatten().numpy()
        maps.append(expected_map(scale, test, held_out=pixels[held_out], targets=targets))
    np.testing.assert_allclose(score(method, test).maps.numpy(), np.mean(maps, axis=0), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("patch", [17, 33, 65])
def test_the_loss_is_the_papers(teachers, patch):
    scale = fit(teachers, patches=(patch,), students=2).scales_[patch]
    crop = scale.crop(small_pixels(1, 3, SIZE), torch.Generator().manual_seed(0))
    teacher, *students = [n.inside(crop, dense=False).double().numpy() for n in (scale.teacher, *scale.students)]
    mu, sigma = scale.target_mean.flatten().numpy(), 1 / scale.target_factor.flatten().numpy()
    expected = sum(reference.loss(teacher, student, mu, sigma) for student in students)
    assert float(scale.loss(crop, hard=None)) == pytest.approx(expected, rel=1e-4)
    squared = (students[0] - (teacher - mu[:, None, None]) / sigma[:, None, None]) ** 2
    assert float(hard_loss(torch.from_numpy(squared), 0.01)) == pytest.approx(
        reference.hard_loss(squared, 0.99), rel=0.02
    )


def test_variance_does_not_cancel():
    outputs = torch.randn(3, 1, 128, 1, 1, generator=torch.Generator().manual_seed(0)) * 1e-3 + 10
    teacher, students = outputs.mean(dim=0).numpy(), list(outputs.double().numpy())
    error, variance = regression_error_and_variance(list(outputs - outputs.mean(dim=0)))
    _, expected = reference.errors(teacher, students, np.zeros(128), np.ones(128))
    np.testing.assert_allclose(variance.numpy(), expected, rtol=1e-3)
    assert float(error) < 1e-6


def test_the_hard_loss_takes_the_largest():
    squared = torch.arange(1000.0)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))].view(1, 10, 10, 10)
    assert float(hard_loss(squared, 0.002)) == 998.5 == reference.hard_loss(squared.numpy(), 0.998)
    assert float(hard_loss(squared, 1e-6)) == 999


@pytest.mark.parametrize("dense", [False, True])
def test_errors_are_measured_by_the_covariance_of_held_out_residuals(teachers, dense):
    pixels, test = small_pixels(9, 1, (38, 45)), small_pixels(2, 2, (38, 45))
    scale = fit(teachers, pixels, distance="mahalanobis", dense=dense).scales_[33]
    targets = scale.target_mean.flatten().numpy(), 1 / scale.target_factor.flatten().numpy()
    stride, held_out = slice(1, None, 4), pixels[split_off(9, 0.3, seed=5)[1]]
    normal, tested = (reference.residuals(*described(scale, p), *targets) for p in (held_out, test))
    mean, inverse = reference.gaussian([r[:, :, stride, stride] for r in normal])
    expected = reference.distances(tested, mean, inverse)
    with torch.no_grad():
        found = scale.errors(test, dense=dense)
    for number, values in enumerate(expected):
        wanted = values if dense else values[:, stride, stride]
        np.testing.assert_allclose(found[:, number].numpy(), wanted, rtol=2e-3)


@pytest.mark.parametrize("scale", ["global", "position"])
def test_a_restored_model_lies_on_one_device(teachers, monkeypatch, scale):
    """Also what no module holds when it is made, as its size or being there depends on the fit."""
    state = fit(teachers, small_pixels(20, 1, SIZE), scale=scale, validation=0.5, distance="mahalanobis").state()
    again = Students(scale=scale, distance="mahalanobis")
    monkeypatch.setattr(module, "find_device", lambda name: torch.device("meta"))
    again.restore(state)
    assert {tensor.device.type for tensor in again.scales_[33].state_dict().values()} == {"meta"}


def test_what_whitens_is_of_the_students_that_are_kept(teachers):
    """Of weights that were rounded before, so that a fit again on the same students finds the same."""
    pixels = small_pixels(7, 1, SIZE)
    scale = fit(teachers, pixels, distance="mahalanobis", rate=1e-2).scales_[33]
    factor = scale.residual_factor.clone()
    scale.fit_residuals(pixels[split_off(7, 0.3, seed=5)[1]].split(1))
    assert torch.equal(scale.residual_factor, factor)


@pytest.mark.parametrize("patch", [17, 33])
def test_residuals_of_strips_in_a_region_are_those_of_the_whole(teachers, monkeypatch, patch):
    scale = fit(teachers, patches=(patch,), distance="mahalanobis").scales_[patch]
    inside = torch.zeros(1, 1, 45, 50)
    inside[:, :, 5:33, 9:40] = 1
    picture = torch.cat([small_pixels(1, 4, (45, 50)), inside], dim=1)
    scale.fit_residuals([picture])
    whole, strips = scale.residual_factor.clone(), scale.teacher.strips
    monkeypatch.setattr(type(scale.teacher), "strips", lambda self, *a, **k: strips(*a, **k, memory=400_000))
    assert len(list(scale.teacher.strips(picture[:, :3], dense=False))) > 1
    scale.fit_residuals([picture])
    torch.testing.assert_close(scale.residual_factor.square(), whole.square(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("distance", ["euclidean", "mahalanobis"])
@pytest.mark.parametrize(("patch", "row"), [(17, 40), (33, 44), (65, 66), (65, 0)])
def test_a_region_may_lie_behind_the_last_fields(teachers, patch, row, distance):
    """The last field of the grid stands for it, as it does in the map."""
    pixels = small_pixels(6, 1, (row + 1 if row else 67, 45))
    inside = torch.zeros(6, *pixels.shape[2:], dtype=torch.bool)
    inside[:, row, 44] = True
    parts = [replace(batch(pixels), inside=inside)]
    given = {"patches": (patch,), "distance": distance, "steps": 2, "validation": 0.3, "scale": "global"}
    method = Students(weights=teachers, **given).fit(parts)
    places = method.scales_[patch]._places_of_map(torch.cat([pixels, inside[:, None]], dim=1))
    assert places.sum(dim=(1, 2)).tolist() == [1] * 6
    assert places[:, -1 if row else 0, -1].all()
    assert method.score(parts[0]).images.isfinite().all()


def test_students_that_are_never_wrong_measure_nothing(teachers):
    """Rather than to divide by 0."""
    scale = fit(teachers).scales_[33]
    for student in scale.students:
        student.load_state_dict(scale.teacher.state_dict())
    scale.target_mean, scale.target_factor = torch.zeros(128, 1, 1), torch.ones(128, 1, 1)
    scale.fit_residuals(small_pixels(2, 1, SIZE).split(1))
    with torch.no_grad():
        assert torch.equal(scale.errors(small_pixels(1, 2, SIZE), dense=False), torch.zeros(1, 2, 9, 9))


# Training


def test_each_student_learns_as_if_it_were_alone(teachers):
    alone = fit(teachers, students=1).scales_[33].students[0].state_dict()
    together = fit(teachers, students=3).scales_[33].students
    for name, tensor in together[0].state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-6)
    assert not torch.equal(together[0].layers[0].weight, together[1].layers[0].weight)


def test_students_begin_with_the_spread_of_their_targets(teachers):
    pixels = 0.5 + 0.05 * small_pixels(7, 1, SIZE)  # of little contrast
    scale = fit(teachers, pixels, steps=1, rate=1e-9).scales_[33]
    spreads = torch.stack([student.inside(pixels, dense=False).std(dim=(0, 2, 3)) for student in scale.students])
    assert 0.7 < float(spreads.mean()) < 1.3


@pytest.mark.parametrize("fast", [False, True])
def test_students_learn(teachers, fast):
    before, after = (fit(teachers, TRAIN, fast=fast, hard=0.05, steps=steps, rate=1e-2) for steps in (1, 40))
    means = [float(method.scales_[33].error_mean[0]) for method in (before, after)]
    assert means[1] < 0.8 * means[0]


def test_crops_lie_anywhere_and_hold_the_grid(teachers):
    scale = fit(teachers, patches=(33,), grid=3).scales_[33]
    image = torch.arange(64.0 * 64).view(1, 1, 64, 64).expand(1, 3, 64, 64)
    crops = [scale.crop(image, torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert all(crop.shape == (1, 3, 32 + 4 * 2, 32 + 4 * 2) for crop in crops)
    assert all(scale.teacher.inside(crop, dense=False).shape == (1, 128, 3, 3) for crop in crops[:1])
    offsets = {int(crop[0, 0, 20, 20]) for crop in crops}
    rows, columns = {o // 64 for o in offsets}, {o % 64 for o in offsets}
    assert {o % 4 for o in rows} == {o % 4 for o in columns} == {0, 1, 2, 3}
    for seen in (rows, columns):
        assert min(seen) <= 6
        assert max(seen) >= 57


@pytest.mark.parametrize("parameters", [{"patches": (17, 33)}, {"fast": True}], ids=str)
def test_a_killed_fit_goes_on_and_ends_the_same(teachers, tmp_path, monkeypatch, parameters):
    whole = fit(teachers, steps=7, **parameters).state()
    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 2)
    parameters |= {"checkpoint": str(tmp_path / "run"), "steps": 7}
    seen, draw = [], Pictures.draw

    def killed(self, step, size, *, seed):
        seen.append(step)
        if seen == [0, 1, 2, 3, 4, 5]:
            raise KeyboardInterrupt
        return draw(self, step, size, seed=seed)

    monkeypatch.setattr(Pictures, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(teachers, **parameters)
    again = fit(teachers, **parameters).state()
    assert seen[6:] == [4, 5, 6]
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    for other in ({"grid": 5}, {"pixels": small_pixels(7, 9, SIZE)}, {"seed": 6}):
        with pytest.raises(ModelFileError, match="a checkpoint of another run"):
            fit(teachers, **parameters | other)


def test_the_time_limit_ends_the_training_only(teachers):
    method = fit(teachers, steps=10**6, time_limit=1e-6)
    assert torch.isfinite(score(method, small_pixels(1, 2, SIZE)).images).all()


# Maps


@pytest.mark.parametrize(("patch", "stride"), [(33, 4), (65, 8)])
def test_fast_maps_are_every_fourth_or_eighth_value(teachers, patch, stride):
    scale = fit(teachers, patches=(patch,), fast=True).scales_[patch]
    pixels = small_pixels(2, 3, (45, 64))
    with torch.no_grad():
        strided, dense = scale.errors(pixels, dense=False), scale.errors(pixels, dense=True)
    first = stride // 2 - 1
    torch.testing.assert_close(strided, dense[:, :, first::stride, first::stride], rtol=1e-4, atol=1e-4)
    assert torch.equal(strided[:, 1], torch.zeros_like(strided[:, 1]))  # one student does not differ from itself


def test_maps_that_are_not_dense_hold_every_fourth_value(teachers):
    test = small_pixels(2, 3, (40, 47))
    dense, other = (score(fit(teachers, dense=dense), test).maps for dense in (True, False))
    torch.testing.assert_close(other, module._enlarge(dense[:, 1::4, 1::4], 4, (40, 47)), rtol=1e-3, atol=1e-3)
    assert not torch.equal(dense, other)


@pytest.mark.parametrize("height", [61, 62, 63, 64, 65, 66, 67])
def test_enlarged_maps_are_not_shifted(height):
    rows = (height + 2) // 4
    middles = torch.arange(rows) * 4 + 1.5
    large = module._enlarge(middles[None, :, None].expand(1, rows, 16), 4, (height, 64))
    assert large.shape == (1, height, 64)
    inner = torch.arange(height)[2 : 4 * rows - 2]
    torch.testing.assert_close(large[0, 2 : 4 * rows - 2, 5], inner.float())


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("patch", [17, 33, 65])
def test_strips_give_the_whole(teachers, patch, dense):
    net, pixels = find_descriptor(patch, teachers), small_pixels(3, 4, (45, 50))
    with torch.no_grad():
        ((_, rows, whole),) = net.strips(pixels, dense=dense)
        expected = net.inside(whole, dense=dense)
        for memory in (400_000, 3_000_000):
            found, strips = torch.full_like(expected, torch.nan), list(net.strips(pixels, dense=dense, memory=memory))
            for images, rows, strip in strips:
                found[images, :, rows] = net.inside(strip, dense=dense)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert len(strips) > 1
    if dense:
        torch.testing.assert_close(expected, net.dense(pixels))


# Weights and wrong arguments


def test_the_built_in_teachers_need_no_weights():
    method = Students(patches=(17, 33, 65), steps=1, grid=3, students=2, dense=False).fit(Images(TRAIN))
    given = find_descriptor(33).state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in method.scales_[33].teacher.state_dict().items())
    maps = score(method, TRAIN[:2]).maps
    assert torch.isfinite(maps).all()
    assert maps.std() > 0


def test_without_built_in_teachers_the_message_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "_BUILTIN", tmp_path)
    with pytest.raises(WeightsError, match=r"patches of 33 .*`blemish distil descriptor IMAGES --patch 33 --out descr"):
        Students().fit(Images(TRAIN))


def test_a_shipped_teacher_is_found(teachers, monkeypatch):
    monkeypatch.setattr(descriptors, "_BUILTIN", teachers)
    found, given = find_descriptor(33), find_descriptor(33, teachers / "descriptor33.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), given.parameters(), strict=True))


def test_foreign_teachers_are_refused(teachers, tmp_path):
    with pytest.raises(WeightsError, match=r"descriptor17.safetensors: of a descriptor for patches of 17, not of 33"):
        fit(teachers / "descriptor17.safetensors")
    with pytest.raises(WeightsError, match=r"descriptor33.safetensors: the file does not exist"):
        fit(tmp_path)


@pytest.mark.parametrize(("parameters", "message"), [
    ({"patches": ()}, r"patches: expected some of 17, 33, 65, each once, got \(\)"),
    ({"patches": (33, 33)}, "patches: expected some of"),
    ({"patches": (17,), "fast": True}, "patches: expected some of 33, 65 with fast"),
    ({"students": 0}, "students: expected a whole number of at least 1, got 0"),
    ({"steps": 2.5}, "steps: expected a whole number"),
    ({"grid": 0}, "grid: expected"),
    ({"hard": 0}, r"hard: expected a number in \(0, 1\], got 0"),
    ({"scale": "none"}, "scale: expected position or global, got none"),
    ({"validation": 1.0}, r"validation: expected a number in \(0, 1\), got 1.0"),
    ({"rate": -1.0}, "rate: expected a number above 0"),
    ({"time_limit": -1}, "time_limit: expected a number of at least 0 or None, got -1"),
    ({"device": "tpu"}, "device: expected auto, cpu"),
])  # fmt: skip
def test_wrong_arguments_are_refused(teachers, parameters, message):
    with pytest.raises(ArgumentError, match=message):
        fit(teachers, **parameters)


def test_the_command_line_takes_a_list_of_patches():
    assert _make_method(find_preset("default"), "students", ["patches=17+33", "rate=1"], {}) == Students(
        patches=(17, 33), rate=1.0
    )
    assert _make_method(find_preset("default"), "students", ["patches=[17, 33]"], {}) == Students(patches=(17, 33))


def test_images_that_are_too_small_are_refused(teachers):
    with pytest.raises(ArgumentError, match=r"sides of at least 17, .* take a smaller patch than 33"):
        fit(teachers, small_pixels(4, 1, (16, 40)))


def test_a_model_is_as_small_as_its_networks_in_half_precision(teachers):
    method = fit(teachers)
    count = 4 * sum(parameter.numel() for parameter in find_descriptor(33, teachers).parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in method.state().values())
    assert 2 * count < size < 2 * count + 2000
