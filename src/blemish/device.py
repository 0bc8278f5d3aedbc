"""Where tensors live: the one place that chooses a device, and tells whether it is there."""

from __future__ import annotations

import torch

from .errors import ArgumentError


def find_device(name: str = "auto") -> torch.device:
    """Turn `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1` ... into a device that computes.

    Raises `ArgumentError` where it is not present, or cannot hold float64 numbers and give them back.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.zeros((), dtype=torch.float64, device=name)
        probe.item()  # a device such as `meta` holds shapes only
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError.about(
            "device", expected="auto, cpu, cuda or cuda:N, present here", got=f"{name} ({reason})"
        ) from None
    return probe.device
