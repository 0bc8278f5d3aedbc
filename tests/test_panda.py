from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from blemish import Detector, Preprocess
from blemish.errors import ArgumentError, NotEnoughMemoryError, WeightsError
from blemish.features.backbones import custom_backbone, find_backbone
from blemish.features.weights import find_weights
from blemish.methods import METHODS
from blemish.methods.panda import PANDA, centre_loss, ewc_penalty, ewc_weight, fisher_diagonal, shuffle_quarters
from blemish.training.network import build_network, trained_parameters
from blemish.types import FeatureMaps
from contract.laws import Images, batch
from reference import knn as knn_reference
from reference import panda as reference
from trained import NET, REFERENCE, check_resumes, varied_pixels

STOPS = [{"stop": "early"}, {"stop": "ses", "snapshot_every": 1}, {"stop": "ewc"}, {"choose": "criterion"}]
TRAIN, TEST = varied_pixels(11, 1), varied_pixels(4, 2)


def panda(**parameters):
    return PANDA(**{"backbone": NET, "epochs": 3, "batch": 4, "rate": 0.1, "clip_norm": 1.0} | parameters)


def pooled(extractor, pixels):
    return knn_reference.pool(extractor(pixels).maps[0].numpy())


# The formulas


def test_losses_equal_the_paper():
    random = np.random.default_rng(0)
    vectors, centre = random.normal(size=(7, 5)), random.normal(size=5)
    ours = centre_loss(torch.from_numpy(vectors), torch.from_numpy(centre))
    assert float(ours) == pytest.approx(reference.centre_loss(vectors, centre))
    now, first, fisher = ([random.normal(size=shape) for shape in ((2, 3), (4,))] for _ in range(3))
    tensors = [{str(i): torch.from_numpy(a) for i, a in enumerate(part)} for part in (now, first, fisher)]
    squares = [values**2 for values in fisher]
    ours = ewc_weight({str(i): torch.from_numpy(values) for i, values in enumerate(squares)}, 0.3, 0.02)
    assert ours == pytest.approx(reference.ewc_weight(squares, 0.3, 0.02))
    assert ewc_weight({"a": torch.zeros(3)}, 0.3, 0.02) == 0
    assert float(ewc_penalty(*tensors, 1e4)) == pytest.approx(reference.ewc_penalty(now, first, fisher, 1e4))


@pytest.mark.parametrize("labelled", [False, True])
def test_fisher_information_equals_its_formula_and_autograd_one_image_at_a_time(labelled):
    network = NET.build().eval().double()
    pixels = varied_pixels(5, 3).double()
    labels = [2, 0, 1, 1, 2] if labelled else [None] * 5
    parameters = dict(network.named_parameters())
    found = fisher_diagonal(network, parameters, zip(pixels.split(1), labels, strict=True))
    inputs = network.c(network.b(network.a(pixels))).mean(dim=(2, 3)).detach().numpy()
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    of_weight, of_bias = reference.fisher_of_linear(inputs, weight, bias, labels)
    np.testing.assert_allclose(found["head.weight"].numpy(), of_weight)
    np.testing.assert_allclose(found["head.bias"].numpy(), of_bias)

    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(pixels, labels, strict=True):
        network.zero_grad()
        logits = network(image[None])
        (logits.logsumexp(dim=1) - logits[0, logits.argmax() if label is None else label]).sum().backward()
        for name, parameter in parameters.items():
            total[name] += parameter.grad**2 / 5
    for name, wanted in total.items():
        torch.testing.assert_close(found[name], wanted)


def test_scores_are_distances_in_the_trained_features():
    method = panda(k=3).fit(Images(TRAIN))
    expected = knn_reference.scores(pooled(method.extractor_, TRAIN), pooled(method.extractor_, TEST), k=3)
    np.testing.assert_allclose(method.score(batch(TEST)).images.numpy(), expected, rtol=1e-4)


def test_sample_wise_early_stopping_equals_the_paper():
    method = panda(stop="ses", snapshot_every=1).fit(Images(TRAIN))
    assert len(method.snapshots_) == 2
    networks = [*method.snapshots_, method.extractor_]
    stages = [(pooled(network, TRAIN), pooled(network, TEST)) for network in networks]
    assert not np.allclose(stages[0][0], stages[2][0])
    expected = reference.ses_scores(stages, method.centre_.numpy())
    np.testing.assert_allclose(method.score(batch(TEST)).images.numpy(), expected, rtol=1e-4)


def test_the_last_network_counts_where_the_snapshots_do_not_reach_it():
    assert len(panda(stop="ses", snapshot_every=2).fit(Images(TRAIN)).snapshots_) == 1
    assert len(panda(stop="ses", snapshot_every=9).fit(Images(TRAIN)).snapshots_) == 0


# The training


def test_it_begins_at_the_mean_of_the_pretrained_features_and_comes_nearer():
    untrained = NET.build().eval()
    with torch.no_grad():
        before = knn_reference.pool(untrained.c(untrained.b(untrained.a((TRAIN - MEAN) / STD))).numpy())
    method = panda(batch=11, rate=1.0, epochs=10).fit(Images(TRAIN))
    np.testing.assert_allclose(method.centre_.numpy(), before.mean(axis=0), rtol=1e-4)
    losses = method.course_.losses[:, 0]
    assert float(losses[0]) == pytest.approx(reference.centre_loss(before, before.mean(axis=0)), rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_only_the_last_stages_are_trained_and_batchnorm_keeps_its_statistics():
    networks = []
    original = PANDA._train

    def spy(self, network, pictures, training):
        networks.append({name: tensor.clone() for name, tensor in network.body.state_dict().items()})
        course = original(self, network, pictures, training)
        networks.append(network.body.state_dict())
        return course

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PANDA, "_train", spy)
        panda().fit(Images(TRAIN))
        panda(trained=("c.0",)).fit(Images(TRAIN))
    changed = [
        {name for name, tensor in first.items() if not torch.equal(tensor, last[name])}
        for first, last in (networks[:2], networks[2:])
    ]
    assert changed[0] == {
        f"{stage}.{layer}" for stage in "bc" for layer in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    assert changed[1] == {"c.0.weight", "c.0.bias"}


@pytest.mark.parametrize(("name", "first", "last"), [
    ("resnet18", "layer3.0.conv1.weight", "layer4.1.bn2.bias"), ("mobilenet_v2", "features.7.", "features.18.1.bias"),
])  # fmt: skip
def test_what_is_trained_by_default(name, first, last):
    row = find_backbone(name)
    names = trained_parameters(row, row.build(), tap=row.deepest, trained=None)
    assert names[0].startswith(first)
    assert names[-1] == last


def test_fisher_information_holds_parameters_back():
    def moved(**parameters):
        method = panda(**parameters).fit(Images(TRAIN))
        return float(method.course_.losses[-1, 0])

    assert moved(stop="early") < moved(stop="ewc", penalty=1e3) < moved(stop="ewc", penalty=1e6)
    assert moved(stop="early") < moved(stop="ewc")
    method = panda(stop="ewc", fisher_images=REFERENCE, fisher_labels="folders").fit(Images(TRAIN))
    assert method.course_.terms == ("centre", "ewc")
    assert float(method.course_.losses[0, 1]) == 0 < float(method.course_.losses[1, 1])


def test_the_epoch_of_the_best_criterion_is_taken():
    method = panda(choose="criterion", rate=1.0).fit(Images(TRAIN))
    figures = [figure for _, figure in method.course_.looks]
    assert [step for step, _ in method.course_.looks] == [0, 3, 6, 9]
    assert len(set(figures)) == 4
    centre = method.centre_.numpy()
    held_out = TRAIN[torch.randperm(11, generator=torch.Generator().manual_seed(0))[:1]]
    logs = [
        np.log(((pooled(method.extractor_, pixels) - centre) ** 2).sum(axis=1)).mean()
        for pixels in (held_out, shuffle_quarters(held_out))
    ]
    assert logs[0] - logs[1] == pytest.approx(min(figures), rel=1e-3)


@pytest.mark.parametrize("parameters", STOPS, ids=str)
@pytest.mark.parametrize("step", [1, 7])
def test_a_fit_that_was_killed_goes_on_with_the_same_scores(parameters, step, tmp_path):
    check_resumes(lambda **more: panda(**parameters, **more), TRAIN, TEST, tmp_path / "c", step=step)


def test_out_of_time_is_no_error():
    method = panda(time_limit=0.0).fit(Images(TRAIN))
    assert (method.course_.ended, method.course_.steps) == ("time", 0)


@pytest.mark.parametrize("parameters", STOPS[:2], ids=str)
def test_a_model_file_scores_identically(parameters, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "panda", PANDA)
    images = (TRAIN.permute(0, 2, 3, 1) * 255).byte().numpy()
    detector = Detector(method=panda(**parameters), preprocess=Preprocess(24), calibration="none").fit(images)
    detector.save(tmp_path / "m.blemish")
    loaded = Detector.load(tmp_path / "m.blemish", backbone=NET)
    assert [d.score for d in loaded.predict(images)] == [d.score for d in detector.predict(images)]


# Images in memory


def test_more_images_than_memory_are_refused():
    with pytest.raises(NotEnoughMemoryError, match=r"panda: 11 images in memory take 0\.\d MB; 0\.\d MB are left"):
        panda(memory_gb=1e-9).fit(Images(TRAIN))


# Errors


@pytest.mark.parametrize(("parameters", "message"), [
    ({"stop": "late"}, r"stop: expected early, ses or ewc, got late"),
    ({"choose": "best"}, r"choose: expected last or criterion"),
    ({"epochs": -1}, r"epochs: expected a whole number of at least 0 or None, got -1"),
    ({"batch": 0}, r"batch: expected a whole number"),
    ({"snapshot_every": 0}, r"snapshot_every: expected a whole number"),
    ({"k": 12}, r"images: expected at least k = 12 normal images, got 11"),
    ({"taps": ("b", "c")}, r"taps: expected 1 text or None, got \('b', 'c'\)"),
    ({"trained": ("d",)}, r"trained: expected modules with parameters \(a, b, c, head, or below\), got d"),
    ({"backbone": "filters"}, r"filters"),
    ({"stop": "ses", "choose": "criterion"}, r"choose: expected last with stop='ses'"),
    ({"fisher_labels": "folders"}, r"fisher_images: expected a folder of class folders, got None"),
])  # fmt: skip
def test_bad_parameters(parameters, message):
    with pytest.raises(ArgumentError, match=message):
        panda(**parameters).fit(Images(varied_pixels(11, 1, (64, 64)) if "backbone" in parameters else TRAIN))


def test_a_network_without_its_classifier_has_no_fisher_information(tmp_path):
    row = replace(NET, source="given")
    torch.save({n: t for n, t in row.build().state_dict().items() if not n.startswith("head")}, tmp_path / "w.pth")
    weights = find_weights(row, tmp_path / "w.pth")
    network = build_network(row, weights, tap="c", trained=None, seed=0, device=torch.device("cpu"))
    assert network.missing == ("head.weight", "head.bias")
    panda(backbone=row, weights=tmp_path / "w.pth").fit(Images(TRAIN))
    with pytest.raises(WeightsError, match=r"2 parameters of the classifier are missing: head.weight, head.bias"):
        panda(backbone=row, weights=tmp_path / "w.pth", stop="ewc").fit(Images(TRAIN))


MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (NET.mean, NET.std))


def test_the_networks_that_are_kept_are_planned_for_without_running_one():
    """One of a fixed input size could not run on pictures of another."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.places, self.last = (
                nn.Conv2d(3, 4, 3, 2, 1),
                nn.Parameter(torch.zeros(20, 20)),
                nn.Identity(),
            )

        def forward(self, pixels):
            return self.last(self.first(pixels) + self.places)

    row = custom_backbone(Fixed(), taps=("last",), name="fixed", trace_size=40)
    maps = FeatureMaps((torch.zeros(1, 4, 20, 20),), (40, 40))
    one, three = (PANDA(backbone=row, stop="ses", epochs=epochs).plan(maps, 30).model_bytes for epochs in (5, 12))
    assert three - one == 2 * 4 * (3 * 4 * 9 + 4 + 400)
