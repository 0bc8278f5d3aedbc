from __future__ import annotations

import numpy as np
import pytest

from blemish.errors import ArgumentError
from blemish.ood import MSP, Energy, Entropy, GeneralisedEntropy, MaxLogit, Outputs, _base
from blemish.ood.logits import energy, entropy, generalised_entropy, log_complement, log_softmax, max_logit, msp
from reference import ood as reference

RANDOM = np.random.default_rng(0)
LOGITS = np.concatenate(
    [
        RANDOM.normal(0, 3, (6, 7)),
        [[0, 0, 0, 0, 0, 0, 0], [90, 1, 2, 3, -60, 0, 0], [700, 690, 0, 0, 0, 0, -700], [5, 5, 5, 1, 1, 1, 1]],
    ]
)


def check(scores, expected):
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 1000.0])
def test_msp_and_energy_equal_the_papers(temperature):
    check(msp(LOGITS, temperature=temperature), [reference.msp(z, temperature) for z in LOGITS])
    check(energy(LOGITS, temperature=temperature), [reference.energy(z, temperature) for z in LOGITS])


def test_entropies_equal_the_papers():
    check(entropy(LOGITS), [reference.entropy(z) for z in LOGITS])
    for gamma, top in ((0.1, 100), (0.1, 3), (0.7, 1)):
        expected = [reference.generalised_entropy(z, gamma, top) for z in LOGITS]
        check(generalised_entropy(LOGITS, gamma=gamma, top=top), expected)


def test_max_logit_is_the_negative():
    np.testing.assert_array_equal(max_logit(LOGITS.astype(np.float32)), -LOGITS.astype(np.float32).max(axis=1))


def test_probabilities_and_their_complements_keep_their_digits():
    z = LOGITS[7]
    p = reference.softmax(z)
    np.testing.assert_allclose(log_softmax(z), [float(v.ln()) for v in p], rtol=1e-13)
    np.testing.assert_allclose(log_complement(log_softmax(z)), [float((1 - v).ln()) for v in p], rtol=1e-13)


@pytest.mark.parametrize("score", [msp, entropy, generalised_entropy])
def test_confident_images_do_not_tie(score):
    """Gaps from 20 to 600: the softmax of all of them is 1 in float32, of most in float64."""
    logits = np.zeros((30, 10), dtype=np.float32)
    logits[:, 4] = np.linspace(600, 20, 30)
    scores = score(logits)
    assert (np.diff(scores) > 0).all()


def test_scores_rank_like_the_papers():
    logits = RANDOM.normal(0, 2, (200, 10))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(np.argsort(msp(logits)), np.argsort(-p.max(axis=1)))


def test_blocks_do_not_matter(monkeypatch):
    logits = RANDOM.normal(0, 2, (50, 10))
    whole = {score: score(logits) for score in (msp, max_logit, energy, entropy, generalised_entropy)}
    monkeypatch.setattr(_base, "_NUMBERS", 70)
    for score, expected in whole.items():
        np.testing.assert_array_equal(score(logits), expected)


def test_detectors_hand_their_parameters_on():
    outputs = Outputs(LOGITS)
    pairs = [
        (MSP(temperature=3.0), msp(LOGITS, temperature=3.0)),
        (MaxLogit(), max_logit(LOGITS)),
        (Energy(temperature=3.0), energy(LOGITS, temperature=3.0)),
        (Entropy(), entropy(LOGITS)),
        (GeneralisedEntropy(gamma=0.3, top=2), generalised_entropy(LOGITS, gamma=0.3, top=2)),
    ]
    for detector, expected in pairs:
        np.testing.assert_array_equal(detector.score(outputs), expected)
    assert MSP().fit(outputs).score(outputs).shape == (len(LOGITS),)


def test_input_is_left_alone():
    logits = LOGITS.copy()
    for score in (msp, max_logit, energy, entropy, generalised_entropy):
        score(logits)
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperatures(temperature):
    for score in (msp, energy):
        with pytest.raises(ArgumentError, match=r"temperature: expected a number above 0"):
            score(LOGITS, temperature=temperature)


@pytest.mark.parametrize("wrong", ["x", None, np.ones(2), True])
def test_parameters_of_a_wrong_type(wrong):
    for use in (lambda: msp(LOGITS, temperature=wrong), lambda: MSP(temperature=wrong).score(Outputs(LOGITS))):
        with pytest.raises(
            ArgumentError, match=r"^temperature: expected a number above 0, got .*\. The default is 1\.0\.$"
        ):
            use()
    with pytest.raises(
        ArgumentError, match=r"^top: expected a whole number of at least 1, got .* The default is 100\.$"
    ):
        generalised_entropy(LOGITS, top=wrong)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"gamma: expected a number in \(0, 1\), got 1.5"):
        generalised_entropy(LOGITS, gamma=1.5)
    with pytest.raises(ArgumentError, match=r"top: expected a whole number of at least 1, got 0"):
        generalised_entropy(LOGITS, top=0)
    with pytest.raises(ArgumentError, match=r"logits: expected at least 2 classes"):
        msp(LOGITS[:, :1])
    with pytest.raises(ArgumentError, match=r"logits: expected a float array of shape \(n, classes\)"):
        msp(LOGITS[0])
    with pytest.raises(ArgumentError, match=r"logits: expected a float array"):
        msp(LOGITS.astype(np.int64))
    with pytest.raises(ArgumentError, match=r"logits: expected finite numbers"):
        msp(np.where(LOGITS == 90, np.nan, LOGITS))
