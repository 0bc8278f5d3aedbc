"""Methods can be copied, cloned and handed to another process; a forked process can go on with what it inherits."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading

import pytest
import torch
from sklearn.base import clone

from blemish.errors import NotFittedError
from blemish.features.backbones import find_backbone
from blemish.features.extract import build_extractor
from blemish.methods import METHODS
from contract.laws import TEST, TRAIN, Images, batch
from small import BACKBONE, small_pixels
from trained import quick

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda method: pickle.loads(pickle.dumps(method))}


@pytest.fixture(scope="module", params=METHODS)
def fitted(request):
    return quick(request.param, seed=3).fit(Images(TRAIN))


def is_same(a, b):
    return torch.equal(a.images, b.images) and (a.maps is b.maps is None or torch.equal(a.maps, b.maps))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_scores_bit_for_bit_the_same_and_stands_alone(fitted, how):
    expected = fitted.score(batch(TEST))
    copied = COPIES[how](fitted)
    assert is_same(copied.score(batch(TEST)), expected)
    before = {name: tensor.clone() for name, tensor in fitted.state().items()}
    with torch.inference_mode():
        for tensor in copied.state().values():
            if tensor.is_floating_point():
                tensor.mul_(0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fitted.state().items())
    assert is_same(fitted.score(batch(TEST)), expected)


def test_a_clone_has_the_parameters_and_nothing_that_was_learned(fitted):
    cloned = clone(fitted)
    assert type(cloned) is type(fitted)
    assert cloned == fitted
    assert cloned.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        cloned.score(batch(TEST))


def test_a_row_of_timm_can_be_pickled_where_it_can_be_made():
    row = find_backbone("timm:test_resnet")
    again = pickle.loads(pickle.dumps(row))
    assert (again.name, again.taps, again.channels) == (row.name, row.taps, row.channels)
    assert again.build().state_dict().keys() == row.build().state_dict().keys()


def test_a_copied_row_is_the_row():
    assert copy.deepcopy(BACKBONE) is BACKBONE


class Interrupted(Exception):
    """Ends the pass that a test holds open."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_forked_during_a_pass_does_not_wait_for_it():
    """The child inherits a lock that is held, and hooks of a pass that never ends there."""
    extractor = build_extractor(BACKBONE)
    pixels = small_pixels(2, 1)
    expected = extractor(pixels).maps
    inside, leave = threading.Event(), threading.Event()

    def stop(_module, _inputs, _output):
        inside.set()
        leave.wait()
        raise Interrupted

    def hold():
        with pytest.raises(Interrupted):
            extractor(pixels)

    handle = extractor.module.b.register_forward_hook(stop)
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()

    def child(answer):
        torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
        handle.remove()
        answer.put([torch.equal(a, b) for a, b in zip(extractor(pixels).maps, expected, strict=True)])

    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=child, args=(answer,), daemon=True)
    try:
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert answer.get() == [True, True, True]
    finally:
        process.kill()
        leave.set()
        thread.join()
        handle.remove()
