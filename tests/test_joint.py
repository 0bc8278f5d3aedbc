from __future__ import annotations

import numpy as np
import pytest
import torch

from blemish.datasets.labelled import open_labelled
from blemish.errors import ArgumentError
from blemish.images.preprocess import Preprocess
from blemish.methods.joint import Joint, gaussian_head, leave_one_out_compactness
from blemish.training.loop import batch_of
from contract.laws import Images, batch
from reference import joint as reference
from reference import knn as knn_reference
from trained import CLASSES, NET, REFERENCE, check_resumes, varied_pixels

TRAIN, TEST = varied_pixels(8, 1), varied_pixels(4, 2)


def joint(**parameters):
    return Joint(**{"backbone": NET, "epochs": 2, "batch": 8, "rate": 1e-4, "reference": REFERENCE} | parameters)


def pooled(extractor, pixels):
    return knn_reference.pool(extractor(pixels).maps[0].numpy())


def reference_images():
    labelled = open_labelled(REFERENCE)
    pixels = torch.stack([Preprocess(24).pixels(labelled.source.load(i)) for i in range(len(labelled))])
    return pixels, labelled.of(labelled.source.names)


def test_compactness_equals_the_paper():
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    assert float(leave_one_out_compactness(torch.from_numpy(vectors))) == pytest.approx(reference.compactness(vectors))


def test_a_new_head_begins_as_the_classifier_of_round_gaussians():
    random = np.random.default_rng(0)
    labels = np.arange(12) % 3
    vectors, tested = random.normal(size=(12, 4)) + labels[:, None], random.normal(size=(5, 4))
    head = gaussian_head(torch.from_numpy(vectors).float(), torch.from_numpy(labels))
    ours = head(torch.from_numpy(tested).float()).detach().numpy()
    expected = reference.gaussian_logits(vectors, labels, tested)
    # Logits count up to a number that is the same for all classes.
    np.testing.assert_allclose(ours - ours[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("head", "normalise"), [("new", False), ("new", True), ("pretrained", False)])
def test_a_step_has_the_loss_of_both_streams(head, normalise):
    method = joint(head=head, compactness=0.3, normalise=normalise).fit(Images(TRAIN))
    untrained = joint(time_limit=0.0).fit(Images(TRAIN)).extractor_
    pixels, labels = reference_images()
    chosen = batch_of(9, 8, seed=1, step=0).numpy()
    vectors = pooled(untrained, pixels)
    if head == "new":
        logits = reference.gaussian_logits(vectors, labels, vectors)
    else:
        linear = NET.build().head
        logits = vectors @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    expected = reference.terms(
        pooled(untrained, TRAIN), logits[chosen], labels[chosen], weight=0.3, normalise=normalise
    )
    assert method.course_.terms == ("compactness", "reference")
    assert method.course_.losses[0].tolist() == pytest.approx(expected, rel=1e-3)


def test_normal_images_come_closer():
    losses = joint(compactness=1e4, rate=1e-4, epochs=8).fit(Images(TRAIN)).course_.losses[:, 0]
    assert losses[-1] < 0.9 * losses[0]


def test_without_compactness_the_normal_images_teach_nothing():
    first, second = (joint(compactness=0.0, rate=0.1).fit(Images(pixels)) for pixels in (TRAIN, varied_pixels(8, 3)))
    trained = [method.extractor_(TEST).maps[0] for method in (first, second)]
    assert torch.equal(*trained)


@pytest.mark.parametrize("normalise", [False, True])
def test_scores_are_distances_to_the_nearest_template(normalise):
    method = joint(normalise=normalise).fit(Images(TRAIN))
    normal, tested = (pooled(method.extractor_, pixels) for pixels in (TRAIN, TEST))
    if normalise:
        normal, tested = (v * np.sqrt(10) / np.linalg.norm(v, axis=1, keepdims=True) for v in (normal, tested))
    expected = knn_reference.scores(normal, tested, k=1)
    np.testing.assert_allclose(method.score(batch(TEST)).images.numpy(), expected, rtol=1e-3)


def test_a_fit_that_was_killed_goes_on_with_the_same_scores(tmp_path):
    check_resumes(lambda **more: joint(batch=4, **more), TRAIN, TEST, tmp_path / "c", step=3)


def test_bad_parameters(tmp_path):
    images = np.zeros((4, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=images, labels=np.zeros(4, dtype=int))
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(4) % 2)
    np.savez(tmp_path / "none.npz", images=images)
    for parameters, message in (
        ({"reference": None}, r"reference: expected a folder of class folders, got None"),
        ({"reference": str(tmp_path / "one.npz")}, r"reference: expected images of at least 2 classes, got 1"),
        ({"reference": str(tmp_path / "none.npz")}, r"reference: expected images with labels"),
        ({"reference": str(tmp_path / "two.npz"), "head": "pretrained"}, rf"expected {CLASSES} classes, got 2"),
        ({"head": "old"}, r"head: expected new or pretrained"),
        ({"batch": 1}, r"batch: expected a whole number of at least 2, got 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            joint(**parameters).fit(Images(TRAIN))
