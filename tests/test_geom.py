from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from blemish.errors import ArgumentError, ModelFileError, NotEnoughMemoryError
from blemish.methods import geom as module
from blemish.methods.geom import Geom, Standardised, WideNet, transformed
from blemish.ops.dirichlet import DirichletSums, inverse_digamma
from blemish.training.pictures import split_off
from contract.laws import TRAIN as STRIPES
from contract.laws import Images, batch
from reference import geom as reference
from trained import NET, Killed, varied_pixels

TRAIN, TEST = varied_pixels(10, 1), varied_pixels(4, 2)
SETTINGS = {"epochs": 2, "side": 8, "batch": 32, "backbone": NET}


def geom(**parameters):
    return Geom(**SETTINGS | parameters)


@pytest.fixture(scope="module")
def wide():
    return geom(mirror=False).fit(Images(TRAIN))


# The transformations


def test_the_papers_72_are_the_default_and_others_can_be_chosen():
    assert len(Geom()._views()) == 72
    for mirror in (True, False):
        for shift in (0.25, 0.0):
            for turns in (1, 2, 4):
                views = Geom(mirror=mirror, shift=shift, turns=turns)._views()
                found = [(v.mirrored, v.down, v.right, v.quarters) for v in views]
                assert found == reference.transformations(mirror, shift > 0, turns)
                assert found[0] == (False, 0, 0, 0)


def test_each_transformation_moves_every_pixel_where_it_belongs():
    image = np.random.default_rng(0).random((3, 8, 12)).astype(np.float32)
    made = [transformed(torch.from_numpy(image)[None], view, 0.25)[0].numpy() for view in Geom()._views()]
    for ours, which in zip(made, reference.transformations(True, True, 4), strict=True):
        np.testing.assert_array_equal(ours, reference.transformed(image, which, 0.25))
    assert len({found.tobytes() for found in made}) == 72


# The Dirichlet distribution


def test_the_parameters_are_the_most_likely_ones():
    random = np.random.default_rng(0)
    for truth in ([5.0, 1.0, 0.3], [0.4, 0.5, 0.6], [80.0, 2.0, 1.0]):
        vectors = random.dirichlet(truth, size=400)
        sums = DirichletSums()
        for part in np.array_split(vectors, 3):
            sums.update(torch.from_numpy(np.log(part))[:, None])
        (alpha,) = sums.estimate().numpy()
        np.testing.assert_allclose(alpha, truth, rtol=0.25)
        best = reference.likelihood(alpha, vectors)
        for step in (0.99, 1.01):
            for i in range(3):
                other = alpha * [step if i == k else 1 for k in range(3)]
                assert reference.likelihood(other, vectors) < best


def test_digamma_is_inverted():
    x = torch.tensor([1e-4, 0.01, 0.3, 1.0, 7.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(inverse_digamma(x.digamma()), x, rtol=1e-8, atol=0)


def test_answers_that_are_all_the_same_have_parameters_as_well():
    sums = DirichletSums()
    sums.update(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log().expand(5, 3))
    alpha = sums.estimate()
    assert torch.isfinite(alpha).all()
    assert (alpha > 0).all()


# The method


@pytest.mark.parametrize("network", ["wide", "backbone"])
@pytest.mark.parametrize("normality", ["dirichlet", "simple"])
def test_scores_equal_the_papers(network, normality):
    method = geom(network=network, normality=normality, shift=0.25 if network == "wide" else 0.0, turns=2, mirror=False)
    method.fit(Images(TRAIN))
    answers = np.array([naive_answers(method, image) for image in TEST.numpy()])
    if normality == "simple":
        expected = [-reference.simple(y) for y in answers]
    else:
        expected = [-reference.normality(y, method.alpha_.double().numpy()) for y in answers]
    np.testing.assert_allclose(method.score(batch(TEST)).images.numpy(), expected, rtol=1e-4)


def naive_answers(method, image):
    """y(T_i(x)) of one image, a view at a time."""
    if method.network == "wide":
        image = functional.adaptive_avg_pool2d(torch.from_numpy(image), method.side).numpy()
    found = []
    for which in reference.transformations(method.mirror, method.shift > 0, method.turns):
        view = torch.from_numpy(reference.transformed(image, which, method.shift))[None]
        vector = method.extractor_(view).maps[0][0].numpy().astype(np.float64).mean(axis=(1, 2))
        found.append(reference.softmax(method.weight_.numpy() @ vector + method.bias_.numpy()))
    return found


def test_parameters_of_the_dirichlet_distributions_are_those_of_the_normal_images(wide):
    answers = np.array([naive_answers(wide, image) for image in TRAIN.numpy()])
    for i in (0, 7):
        best = reference.likelihood(wide.alpha_[i].double().numpy(), answers[:, i])
        for step in (0.9, 1.1):
            assert reference.likelihood(wide.alpha_[i].double().numpy() * step, answers[:, i]) < best


@pytest.mark.parametrize(
    "parameters", [{"network": "wide", "epochs": 16}, {"network": "backbone", "epochs": 60}], ids=str
)
def test_the_classifier_learns_which_transformation_it_was(parameters):
    method = geom(mirror=False, shift=0.0, batch=16, rate=1e-2, **parameters).fit(Images(STRIPES))
    losses = method.course_.losses[:, 0]
    assert losses[-10:].mean() < 0.5 * losses[0]
    answers = method._answers(method._seen(STRIPES))
    assert float((answers.argmax(dim=2) == torch.arange(4)).float().mean()) > 0.8


def test_a_frozen_backbone_stays_as_it_is():
    method = geom(network="backbone", shift=0.0, turns=1)
    begun = geom(network="backbone", shift=0.0, turns=1, epochs=0)
    first, last = begun.fit(Images(TRAIN)), method.fit(Images(TRAIN))
    torch.testing.assert_close(last.extractor_(TEST).maps[0], first.extractor_(TEST).maps[0], rtol=0, atol=0)
    assert not torch.equal(first.weight_, last.weight_)


def test_images_that_are_not_square_turn():
    pixels = varied_pixels(6, 3)[:, :, :40, :]
    for network in ("wide", "backbone"):
        method = geom(network=network, shift=0.0).fit(Images(pixels))
        assert torch.isfinite(method.score(batch(pixels)).images).all()


def test_standardising_is_undone_in_the_linear_layer():
    vectors = torch.randn(20, 5) * torch.arange(5) + 3  # the first number is always the same
    scaled = Standardised.of(vectors)
    assert torch.isfinite(scaled(vectors)).all()
    weight, bias = torch.randn(4, 5), torch.randn(4)
    weight[:, 0] = 0
    raw, offset = scaled.undone(weight, bias)
    torch.testing.assert_close(vectors @ raw.T + offset, scaled(vectors) @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_the_network_is_a_wide_resnet_of_ten_layers():
    network = WideNet(width=4)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions if c.kernel_size == (3, 3)] == [16, 64, 64, 128, 128, 256, 256]
    assert network(torch.rand(2, 3, 40, 70)).shape == (2, 256, 8, 8)


def test_each_image_comes_200_times_unless_told_otherwise():
    pictures = TRAIN[:2]
    course = Geom(side=8, width=1, backbone=NET, mirror=False, shift=0.0, batch=8).fit(Images(pictures)).course_
    assert course.steps == 50  # 4 transformations, so 50 passes over 2 x 4 images, one step each


def test_the_classifier_that_knows_held_out_images_best_is_kept():
    noise = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # nothing to learn but by heart
    settings = {"network": "backbone", "shift": 0.0, "mirror": False, "batch": 16, "epochs": 60, "rate": 0.1}
    method = geom(validation=0.3, **settings).fit(Images(noise))
    looks = [figure for _, figure in method.course_.looks]
    answers = np.array([naive_answers(method, image) for image in noise[split_off(20, 0.3, seed=0)[1]].numpy()])
    found = -np.log(answers[:, range(4), range(4)]).mean()
    assert found == pytest.approx(min(looks), rel=1e-4)
    assert min(looks) < 0.8 * looks[-1]  # which the last classifier, without a share held out, would have


def test_held_out_images_are_not_learned_from():
    def losses(pixels):
        return geom(validation=0.3, mirror=False, shift=0.0).fit(Images(pixels)).course_.losses

    learned, held_out = split_off(len(TRAIN), 0.3, seed=0)
    changed = {name: TRAIN.clone() for name in ("learned", "held out")}
    changed["learned"][learned[0]], changed["held out"][held_out] = 1 - TRAIN[learned[0]], 1 - TRAIN[held_out]
    assert torch.equal(losses(changed["held out"]), losses(TRAIN))
    assert not torch.equal(losses(changed["learned"]), losses(TRAIN))


def test_it_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    def make(**parameters):
        return geom(mirror=False, shift=0.0, epochs=3, batch=20, **parameters)

    def die(*arguments, seed, step):
        if step == 3:
            raise Killed
        return draw(*arguments, seed=seed, step=step)

    draw, path = module.batch_of, str(tmp_path / "c")
    expected = make().fit(Images(TRAIN)).score(batch(TEST)).images
    monkeypatch.setattr(module, "batch_of", die)
    with pytest.raises(Killed):
        make(checkpoint=path).fit(Images(TRAIN))
    monkeypatch.setattr(module, "batch_of", draw)
    assert torch.equal(make(checkpoint=path).fit(Images(TRAIN)).score(batch(TEST)).images, expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mirror": False, "shift": 0.0, "turns": 1}, "turns: expected more than 1"),
        ({"turns": 3}, "turns: expected"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        geom(**parameters).fit(Images(TRAIN))


def test_features_that_do_not_fit_into_memory_are_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(Geom, "_memory_left", lambda self: 1000)
    with pytest.raises(NotEnoughMemoryError, match="features of 10 images under 72 transformations take"):
        geom(network="backbone").fit(Images(TRAIN))


def test_a_state_of_other_transformations_is_refused(wide):
    with pytest.raises((ArgumentError, ModelFileError)):
        geom(turns=2, mirror=False).restore(wide.state())
