from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blemish.errors import ArgumentError
from blemish.ops.flows import ConditionalFlow, position_code
from blemish.training.loop import Adam, Recipe, generator, optimise
from reference import flows as reference


def flow_of(dimension, condition, *, blocks=3, soft=True, clamp=1.9):
    """With parameters far from their start, in float64: nothing is 1 or 0 by chance."""
    random = torch.Generator().manual_seed(0)
    flow = ConditionalFlow(dimension, condition, blocks=blocks, soft=soft, clamp=clamp, generator=random).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return flow


def random_rows(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("dimension", [2, 5, 8])
def test_log_determinant_is_that_of_the_jacobian(dimension, soft):
    flow, rows, conditions = flow_of(dimension, 4, soft=soft), random_rows(6, dimension), random_rows(6, 4)
    _, log_det = flow(rows, conditions)
    for x, c, found in zip(rows, conditions, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v, c=c: flow(v, c)[0], x)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("soft", [True, False])
def test_inverse_comes_back(soft):
    flow, rows, conditions = flow_of(5, 4, soft=soft), random_rows(6, 5), random_rows(6, 4)
    torch.testing.assert_close(flow.inverse(flow(rows, conditions)[0], conditions), rows, rtol=1e-5, atol=1e-5)


def test_equals_the_plain_loops():
    flow, rows, conditions = flow_of(5, 3, clamp=1.3), random_rows(4, 5), random_rows(4, 3)
    names = [*dict(flow.named_parameters()), "mixings"]
    blocks = [{name: getattr(flow, name)[i].detach().numpy() for name in names} for i in range(3)]
    one = [reference.log_density(x, c, blocks, 1.3) for x, c in zip(rows.numpy(), conditions.numpy(), strict=True)]
    np.testing.assert_allclose(flow.log_density(rows, conditions).detach().numpy(), one, rtol=1e-10)


def test_conditions_may_be_shared():
    flow, rows, conditions = flow_of(4, 3), random_rows(2, 5, 4), random_rows(5, 3)
    shared = flow.log_density(rows, conditions)
    torch.testing.assert_close(shared[1], flow.log_density(rows[1], conditions))


def test_a_new_block_is_nearly_its_permutation():
    flow = ConditionalFlow(6, 8, blocks=1, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    z, log_det = flow(rows, torch.zeros(20, 8))
    torch.testing.assert_close(z, rows @ flow.mixings[0], rtol=0, atol=0.3)
    assert log_det.abs().max() < 0.5


@pytest.mark.parametrize("soft", [True, False])
def test_mixings_are_orthogonal_and_seeded(soft):
    first, again, other = (
        ConditionalFlow(7, 4, blocks=2, soft=soft, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    for mixing in first.mixings:
        torch.testing.assert_close(mixing @ mixing.T, torch.eye(7))
    assert torch.equal(first.mixings, again.mixings)
    assert torch.equal(first.of_vector, again.of_vector)
    assert not torch.equal(first.mixings, other.mixings)
    assert not torch.equal(first.mixings[0], first.mixings[1])


def test_a_toy_density_is_recovered():
    """A bent ridge that the condition shifts; its density is known: x0 ~ N(c, 1/4), x1 ~ N(x0^2, 1/16)."""

    def draw(count, seed):
        random = torch.Generator().manual_seed(seed)
        c = torch.rand(count, 1, generator=random)
        noise = torch.randn(count, 2, generator=random)
        x0 = c[:, 0] + noise[:, 0] / 2
        x1 = x0.square() + noise[:, 1] / 4
        exact = -0.5 * noise.square().sum(dim=1) - math.log(2 * math.pi) + math.log(8)
        return torch.stack([x0, x1], dim=1), c, exact

    flow = ConditionalFlow(2, 1, blocks=6, generator=torch.Generator().manual_seed(0))

    def objective(step):
        x, c, _ = draw(256, int(torch.randint(1 << 40, (), generator=generator(0, step))))
        return -flow.log_density(x, c).mean()

    optimise(objective, flow, steps=400, recipe=Recipe(optimiser=Adam(rate=0.02)))
    x, c, exact = draw(4000, 9)
    with torch.no_grad():
        found = flow.log_density(x, c)
    # The mean difference is the Kullback-Leibler divergence, and the start is more than 1 away.
    assert 0 <= float((exact - found).mean()) < 0.08
    assert float((exact - found).abs().median()) < 0.25


def test_position_code_equals_the_plain_loops():
    code = position_code(3, 5, 12)
    np.testing.assert_allclose(code.numpy(), reference.position_code(3, 5, 12).reshape(15, 12), atol=1e-6)
    assert len({tuple(row) for row in position_code(16, 16).tolist()}) == 256


def test_bad_sizes_are_refused():
    with pytest.raises(ArgumentError, match=r"size: expected a multiple of 4, got 6"):
        position_code(3, 3, 6)
    with pytest.raises(ArgumentError, match=r"dimension: expected at least 2"):
        ConditionalFlow(1, 4)
