"""The classifier as detectors see it, and the detectors that run it again: ODIN and the gradient method."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import stripes
from blemish.errors import ArgumentError, WeightsError
from blemish.images.preprocess import Preprocess
from blemish.metrics import auroc
from blemish.ood import ODIN, Classifier, Gradient, LastLayerGradient, open_classifier
from blemish.ood.cifar_resnet import CifarResNet


def naive_odin(model, image, temperature, eps):
    """One image, step by step, in float64: the step, then -max softmax."""
    model, image = copy.deepcopy(model).double(), image.double()
    x = image[None].clone().requires_grad_()
    z = model((x - 0.5) / 0.25) / temperature
    nn.functional.cross_entropy(z, z.argmax(1)).backward()
    moved = image[None] - eps * x.grad.sign()
    p = torch.softmax(model((moved - 0.5) / 0.25) / temperature, 1)
    return moved.detach(), -p.max().item()


def naive_gradient(model, image, temperature, eps, *, label=None, names=None):
    """One image, one backward pass, one parameter after the other."""
    moved, _ = naive_odin(model, image, temperature, eps)
    model = copy.deepcopy(model).double()
    z = model((moved - 0.5) / 0.25) / temperature
    target = z.argmax(1) if label is None else torch.tensor([label])
    parameters = [p for name, p in model.named_parameters() if names is None or name.split(".")[0] in names]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(z, target), parameters)
    return float(np.sqrt(sum(g.double().square().sum().item() for g in gradients)))


@pytest.fixture
def images():
    return stripes.pixels(np.concatenate([stripes.stripes(6, 5)[0], stripes.blobs(5, 6)]))


@pytest.mark.parametrize(("temperature", "eps"), [(1.0, 0.002), (5.0, 0.01), (1000.0, 0.0014), (2.0, 0.0)])
def test_odin_is_the_paper_one_image_at_a_time(images, temperature, eps):
    classifier = stripes.classifier()
    got = ODIN(temperature=temperature, eps=eps).score(classifier.outputs(images))
    wanted = [naive_odin(classifier.model, image, temperature, eps)[1] for image in images]
    np.testing.assert_allclose(np.expm1(got), np.array(wanted), rtol=1e-5)  # log(1 - p) -> -p


@pytest.mark.parametrize(("temperature", "eps"), [(1.0, 0.0), (2.0, 0.001), (5.0, 0.01)])
def test_gradient_method_is_the_published_one_image_at_a_time(images, temperature, eps):
    classifier = stripes.classifier()
    got = Gradient(temperature=temperature, eps=eps).score(classifier.outputs(images))
    wanted = [naive_gradient(classifier.model, image, temperature, eps) for image in images]
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-11)  # p_y - 1 ends the digits of the naive loop


class Waves(nn.Module):
    """A long step towards a class overshoots into the next one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 2.0]))

    def forward(self, x):
        angle = 20 * x.mean((1, 2, 3))
        return self.weight * torch.stack([angle.cos(), angle.sin()], 1)


def test_labels_may_be_those_of_the_original_image(images):
    classifier = Classifier(Waves(), Preprocess(16), (0.5,) * 3, (0.25,) * 3)
    outputs = classifier.outputs(images)
    labels = outputs.logits.argmax(1)
    original, perturbed = (
        Gradient(temperature=2.0, eps=0.06, label=label).score(outputs) for label in ("original", "perturbed")
    )
    pairs = list(zip(images, labels, strict=True))
    wanted = [naive_gradient(classifier.model, x, 2.0, 0.06, label=int(c)) for x, c in pairs]
    np.testing.assert_allclose(original, wanted, rtol=1e-3)
    wanted = [naive_gradient(classifier.model, x, 2.0, 0.06) for x in images]
    np.testing.assert_allclose(perturbed, wanted, rtol=1e-3)
    assert not np.allclose(original, perturbed, rtol=0.1)


def test_a_subset_of_the_parameters_by_prefix(images):
    classifier = stripes.classifier()
    got = Gradient(temperature=2.0, eps=0.0, parameters=("0", "9")).score(classifier.outputs(images))
    wanted = [naive_gradient(classifier.model, x, 2.0, 0.0, names=("0", "9")) for x in images]
    np.testing.assert_allclose(got, wanted, rtol=2e-3)


def test_the_last_layer_alone_is_the_closed_form(images):
    classifier = stripes.classifier()
    outputs = classifier.outputs(images)
    engine = Gradient(temperature=3.0, eps=0.0, parameters=("9",)).score(outputs)
    np.testing.assert_allclose(np.log(engine), LastLayerGradient(temperature=3.0).score(outputs), rtol=1e-5)


def test_blocks_add_up_to_the_score(images):
    outputs = stripes.classifier().outputs(images)
    detector = Gradient(temperature=2.0, eps=0.001)
    blocks = detector.blocks(outputs)
    assert list(blocks) == ["0", "1", "3", "7", "9"]
    np.testing.assert_allclose(np.sqrt(sum(b**2 for b in blocks.values())), detector.score(outputs), rtol=1e-6)


def test_eps_in_normalised_units_is_a_step_scaled_by_the_standard_deviation(images):
    outputs = stripes.classifier().outputs(images)
    for kind in (ODIN, Gradient):
        pixel = kind(temperature=2.0, eps=0.01, unit="pixel").score(outputs)
        normalised = kind(temperature=2.0, eps=0.04, unit="normalised").score(outputs)
        np.testing.assert_allclose(pixel, normalised, rtol=1e-5)


@pytest.mark.parametrize("detector", [ODIN(temperature=2.0), Gradient(), Gradient(label="original", norm="l1")])
def test_scores_are_larger_for_outliers_and_do_not_depend_on_the_batch(detector):
    classifier = stripes.classifier()
    inside, outside = stripes.pixels(stripes.stripes(30, 7)[0]), stripes.pixels(stripes.blobs(30, 8))
    both = torch.cat([inside, outside])
    scores = detector.score(classifier.outputs(both))
    assert auroc(scores, np.repeat([False, True], 30)) > 0.8
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = detector.score(classifier.outputs(both[order]))
    np.testing.assert_allclose(shuffled, scores[order.numpy()], rtol=1e-3)
    one = [detector.score(classifier.outputs(both[i : i + 1]))[0] for i in (0, 31)]
    np.testing.assert_allclose(one, scores[[0, 31]], rtol=1e-3)


def test_the_network_is_left_as_it_was(images):
    model = stripes.network().train()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classifier = Classifier(model, Preprocess(16), (0.5,) * 3, (0.25,) * 3)
    state = torch.random.get_rng_state()
    outputs = classifier.outputs(images)
    Gradient().score(outputs)
    ODIN().score(outputs)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())


def test_very_confident_images_keep_apart():
    """Logit gaps of 100 to 130: softmax is 1 in float32 and in float64, gradients of float32 losses are 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2, bias=False))
    with torch.no_grad():
        model[1].weight[0] = 1.0
        model[1].weight[1] = 0.0
    classifier = Classifier(model, Preprocess(16), (0.0,) * 3, (1.0,) * 3)
    brightness = torch.tensor([100.0, 110.0, 130.0]) / 768
    batch = brightness[:, None, None, None].expand(-1, 3, 16, 16)
    for detector in (Gradient(temperature=1.0, eps=0.0), ODIN(temperature=1.0, eps=1e-4)):
        scores = detector.score(classifier.outputs(batch))
        assert scores[0] > scores[1] > scores[2]
    norms = Gradient(temperature=1.0, eps=0.0).score(classifier.outputs(batch))
    gap = np.subtract(*classifier.outputs(batch).logits.astype(np.float64).T)  # float32 sums differ by library
    wanted = np.exp(-gap) * np.sqrt(2) * np.sqrt(768) * brightness.double().numpy()
    np.testing.assert_allclose(norms, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("detector", "name"),
    [
        (ODIN(temperature=0.0), "temperature"),
        (ODIN(eps=-0.1), "eps"),
        (Gradient(unit="metres"), "unit"),
        (Gradient(label="mine"), "label"),
        (Gradient(parameters=("layer9",)), "parameters"),
    ],
)
def test_bad_parameters_are_named(images, detector, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        detector.score(stripes.classifier().outputs(images))


# Classifier


def test_features_and_head_give_the_logits(images):
    outputs = stripes.classifier().outputs(images)
    logits = outputs.features @ outputs.head.weight.T + outputs.head.bias
    np.testing.assert_allclose(logits, outputs.logits, atol=1e-5)


def test_a_convolutional_head_has_features_but_no_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(model, Preprocess(16))
    x = torch.rand(2, 3, 16, 16)
    outputs = classifier.outputs(x)
    assert classifier.head == "1"
    assert outputs.head is None
    with torch.no_grad():
        wanted = model[0](classifier.normalised(x)).mean((2, 3)).numpy()
    np.testing.assert_allclose(outputs.features, wanted, rtol=1e-5)


def test_a_last_layer_that_is_not_the_logits_is_no_head():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(768, 3)

        def forward(self, x):
            return 2 * self.fc(x.flatten(1))

    assert Classifier(Scaled(), Preprocess(16)).outputs(torch.rand(1, 3, 16, 16)).head is None


def test_the_search_for_the_head_bears_any_last_layer_and_draws_nothing():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(768, 6)

        def forward(self, x):
            return self.fc(x.flatten(1)).unflatten(1, (3, 2)).sum(2)

    network = Pairs()
    state = torch.random.get_rng_state()
    assert Classifier(network, Preprocess(16)).outputs(torch.zeros(1, 3, 16, 16)).head is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_ensemble_runs_every_member_on_the_same_pixels(images):
    members = [stripes.classifier(seed) for seed in (1, 2)]
    outputs = stripes.classifier(0, members).outputs(images)
    assert len(outputs.members) == 3
    np.testing.assert_array_equal(outputs.members[0], outputs.logits)
    np.testing.assert_array_equal(outputs.members[2], members[1].outputs(images).logits)


def test_a_network_without_logits_is_refused():
    with pytest.raises(ArgumentError, match="logits"):
        Classifier(nn.Conv2d(3, 3, 1), Preprocess(16))


def test_cifar_resnet_has_the_published_size():
    """He et al. 2016, table 6: 0.27, 0.46 and 0.85 million parameters."""
    sizes = [sum(p.numel() for p in CifarResNet(depth).parameters()) for depth in (20, 32, 56)]
    assert [round(size / 1e6, 2) for size in sizes] == [0.27, 0.46, 0.85]


def test_classifiers_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
    network = CifarResNet(20)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "cifar10_resnet20.th"
    )
    classifier = open_classifier("cifar10_resnet20")
    assert classifier.preprocess == Preprocess(32)
    assert torch.equal(classifier.model.linear.weight, network.linear.weight)
    assert open_classifier("stripes:factory").name == "stripes"


@pytest.mark.parametrize(("name", "mean"), [("mnasnet0_5", 0.485), ("googlenet", 0.5)])
def test_networks_with_habits_of_their_own(name, mean, tmp_path, monkeypatch):
    """MNASNet wants to know a version; GoogLeNet's weights expect inputs from -1 to 1."""
    from blemish.features.backbones import BACKBONES

    monkeypatch.setenv("BLEMISH_WEIGHTS", str(tmp_path))
    torch.save(dict(BACKBONES[name].build().state_dict()), tmp_path / f"{name}.pth")
    assert open_classifier(name).mean[0] == mean


def test_incomplete_weights_are_refused(tmp_path):
    state = CifarResNet(20).state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"layer3\.0\.conv1\.weight"):
        open_classifier("cifar10_resnet20", weights=tmp_path / "part.pth")


@pytest.mark.parametrize("name", ["resnet19", "stripes:nothing", "no_such_module:f", "missing.pt2"])
def test_unknown_classifiers_say_what_there_is(name):
    with pytest.raises((ArgumentError, WeightsError), match=r"torchvision|module:factory|cannot be read"):
        open_classifier(name)


def test_an_exported_file_gives_the_same_scores(tmp_path, images):
    model = stripes.trained()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    opened = open_classifier(str(tmp_path / "model.pt2"), preprocess=Preprocess(16))
    plain = Classifier(model, Preprocess(16))
    np.testing.assert_allclose(opened.outputs(images).logits, plain.outputs(images).logits, atol=1e-5)
    for detector in (ODIN(), Gradient()):
        got, wanted = detector.score(opened.outputs(images)), detector.score(plain.outputs(images))
        np.testing.assert_allclose(got, wanted, rtol=1e-3)
