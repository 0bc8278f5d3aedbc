"""Every law on every registered method: a new entry in the registry is enrolled by being there."""

from __future__ import annotations

import pytest
import torch

from blemish.errors import ArgumentError
from blemish.features.backbones import find_backbone
from blemish.methods import METHODS, FeatureMethod, Incremental
from contract.laws import (
    LAWS,
    TEST,
    TRAIN,
    Images,
    assert_same,
    batch,
    known,
    law_failed_update_changes_nothing,
    law_untrained_is_where_it_begins,
    law_update_comes_close,
    law_update_equals_refit,
)
from trained import TINY, quick

# Further parameters under which a method takes another way through its code.
VARIANTS = {
    "padim": [
        {"dimensions": 9, "top_share": 0.02},
        {"dimensions": 9, "reduction": "random"},
        {"storage": "float16"},
        {"precision": "bfloat16"},
    ],
    "patchcore": [
        {"patches": "unfold", "dimensions": 20, "reweight": 3, "ratio": 0.2},
        {"storage": "int8", "ratio": 0.2, "top_share": 0.1},
        {"turns": 3, "ratio": 0.2},
    ],
    "spade": [{"k": 3, "storage": "float16", "top_share": 0.02}],
    "ocsvm": [{"approximation": "fourier"}, {"kernel": "poly"}],
    "svdd": [{"kernel": "linear"}, {"approximation": "nystroem", "components": 8}],
    "gaussian": [{"components": "npca", "variance": 0.5}],  # a fifth would be directions that rounding makes
    "cflow": [{"combine": "likelihood", "permutation": "hard", "top_share": 0.02}],
    "students": [{"patches": (33, 65), "fast": True, "hard": 0.05, "top_share": 0.02, "distance": "mahalanobis"}],
    "panda": [{"stop": "ses", "snapshot_every": 1}, {"stop": "ewc"}],
    "deep_svdd": [{"boundary": "soft", "warm_up": 1}],
    "geom": [{"network": "backbone", "normality": "simple", "rate": 1e-2}],
}
CASES = [(name, parameters) for name in METHODS for parameters in [{}, *VARIANTS.get(name, [])]]


MAKERS = {str(case): (lambda name=case[0], parameters=case[1]: quick(name, seed=3, **parameters)) for case in CASES}


def maker(name, parameters):
    """The same function for the same case: the laws share a fit by it."""
    return MAKERS[str((name, parameters))]


# Where a processor has no bfloat16, it takes many times as long.
MARKED = [pytest.param(*case, marks=[pytest.mark.heavy] if "precision" in case[1] else []) for case in CASES]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize(("name", "parameters"), MARKED, ids=str)
def test_method_keeps(name, parameters, law):
    law(maker(name, parameters))


PLANNED = [case for case in CASES if issubclass(METHODS[case[0]], FeatureMethod)]


@pytest.mark.parametrize(("name", "parameters"), PLANNED, ids=str)
def test_what_is_learned_is_planned_for(name, parameters):
    method = known(maker(name, parameters))
    plan = method.plan(method._maps(batch(TRAIN[:1])), len(TRAIN))
    learned = sum(tensor.nbytes for tensor in method._learned().values())
    small = 4096  # numbers of the layers that are not worth planning
    assert learned - small <= 1.1 * plan.model_bytes <= 3 * learned + small
    assert plan.model_bytes <= plan.peak_bytes


INCREMENTAL = [(n, p) for n, p in CASES if issubclass(METHODS[n], Incremental) and p.get("storage") != "float16"]


@pytest.mark.parametrize(("name", "parameters"), INCREMENTAL, ids=str)
def test_incremental_method_keeps(name, parameters):
    law_update = law_update_equals_refit if METHODS[name].exact_update else law_update_comes_close
    law_update(maker(name, parameters))


@pytest.mark.parametrize(("name", "parameters"), INCREMENTAL, ids=str)
def test_failed_update_changes_nothing(name, parameters):
    law_failed_update_changes_nothing(maker(name, parameters))


TRAINED = [case for case in CASES if hasattr(METHODS[case[0]], "time_limit")]


@pytest.mark.parametrize(("name", "parameters"), TRAINED, ids=str)
def test_method_that_trains_can_be_compared_with_itself_untrained(name, parameters):
    law_untrained_is_where_it_begins(maker(name, parameters))


@pytest.mark.parametrize("name", ["joint", "panda"])
def test_neighbours_in_an_untrained_network_are_those_of_knn(name):
    method = quick(name, epochs=0).fit(Images(TRAIN))
    knn = METHODS["knn"](backbone=method.backbone, taps=method.tapped(), k=method.k).fit(Images(TRAIN))
    assert_same(method.score(batch(TEST)), knn.score(batch(TEST)))


FROZEN = [
    name for name, kind in METHODS.items() if issubclass(kind, FeatureMethod) and name not in {n for n, _ in TRAINED}
]


@pytest.mark.parametrize("tap", find_backbone("compact").narrow)
@pytest.mark.parametrize("name", FROZEN)
def test_defaults_fit_any_one_layer(name, tap):
    scores = METHODS[name](taps=(tap,)).fit(Images(TRAIN)).score(batch(TEST))
    assert scores.images.isfinite().all()


@pytest.mark.parametrize("name", ["padim", "spade"])
def test_the_score_of_an_image_is_the_mean_of_the_highest_share_of_its_map(name):
    method = quick(name, seed=3, top_share=1.0)
    scores = method.fit(Images(TRAIN)).score(batch(TEST))
    torch.testing.assert_close(scores.images, scores.maps.mean(dim=(1, 2)))


def test_a_share_and_a_reweighted_patch_do_not_go_together():
    with pytest.raises(ArgumentError, match="top_share: expected 0 with reweight"):
        METHODS["patchcore"](reweight=3, top_share=0.1).check()


@pytest.mark.parametrize("name", METHODS)
def test_name_in_the_registry_is_the_methods_own(name):
    assert METHODS[name].name == name


def test_what_is_said_of_methods_here_is_said_of_methods_that_there_are():
    assert {*VARIANTS, *TINY} <= set(METHODS)
