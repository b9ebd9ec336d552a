"""Tensors of torch."""

from collections.abc import Sequence
from typing import Any

import torch


def device_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, on their devices."""
    return [variable.value.detach().clone() for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, in host memory."""
    return [v.value.detach().to("cpu", copy=True) for v in variables]


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN."""
    same = [
        ((a == b) | (a.isnan() & b.isnan())).all()
        for a, b in (
            (one.detach(), other.to(one.device))
            for one, other in zip(ones, others, strict=True)
        )
    ]
    # One wait for the device, not one for each pair.
    return torch.stack(same).tolist() if same else []


def randomness_kept() -> Any:
    """Context that gives the state of the host's generator back.

    Each `DataLoader` draws a seed from it, so that reading data changes what
    `Dropout` and shuffling do next.
    """
    return torch.random.fork_rng(devices=[])
