"""Norms of per-sample gradients by plain autograd, one sample and one parameter after the other."""

from __future__ import annotations

import copy

import torch


def gradients(model, x, loss):
    """For each sample a dict from names to gradients; `loss(output, i)` is the loss of sample i, alone in its batch."""
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    found = []
    for i in range(len(x)):
        model.zero_grad(set_to_none=True)
        value = loss(model(x[i : i + 1].clone()), i)
        assert value.numel() == 1
        value.sum().backward()
        rows = {}
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            rows[name] = (gradient.to_dense() if gradient.is_sparse else gradient).double().clone()
        found.append(rows)
    return found


def norms(found, names, p):
    """`(batch,)`: p-norm over the entries of the parameters `names`."""
    values = []
    for rows in found:
        total = 0.0
        for name in names:
            total += float((rows[name].abs() ** p).sum())
        values.append(total ** (1 / p))
    return torch.tensor(values, dtype=torch.float64)
