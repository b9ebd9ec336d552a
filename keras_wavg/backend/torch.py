"""Tensors of torch."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy
import torch


def _is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`, spread over ranks."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_part(tensor: Any) -> Any:
    """What this rank has of a tensor."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def placed(value: Any, variable: Any) -> Any:
    """A value of a Keras variable, spread like it.

    Args:
        value: Tensor or array, the whole or this rank's part.
        variable: A Keras variable.
    """
    like = variable.value
    if not _is_sharded(like) or _is_sharded(value):
        return value
    tensor = torch.as_tensor(value, device=like.to_local().device)
    module: Any = sys.modules["torch.distributed.tensor"]
    mesh, placements = like.device_mesh, like.placements
    from_local = functools.partial(
        module.DTensor.from_local, device_mesh=mesh, run_check=False
    )
    if tensor.shape == like.to_local().shape:
        sizes = {"shape": like.shape, "stride": like.stride()}
        return from_local(tensor, placements=placements, **sizes)
    same = [module.Replicate()] * mesh.ndim
    return from_local(tensor, placements=same).redistribute(mesh, placements)


laid_out = placed


def unreadable(variables: Sequence[Any]) -> list[str]:
    """Paths of the variables of which a rank has only a part."""
    return [v.path for v in variables if _is_sharded(v.value)]


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether variables are spread over ranks."""
    return any(_is_sharded(variable.value) for variable in variables)


def without_parameters(model: Any) -> list[str]:
    """Paths of the weights whose parameters `fully_shard` replaced.

    Optimizers train the parameters, and Keras goes on with the old tensors.
    """
    parameters = list(model.parameters())
    if not any(map(_is_sharded, parameters)):
        return []
    known = set(map(id, parameters))
    weights = model.trainable_variables
    return [weight.path for weight in weights if id(weight.value) not in known]


def device_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, on their devices."""
    return [variable.value.detach().clone() for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, in host memory."""
    parts = [own_part(variable.value.detach()) for variable in variables]
    return [part.to("cpu", copy=True) for part in parts]


def host_copy(tensor: Any) -> Any:
    """The same of a tensor, as a NumPy array."""
    return numpy.array(keras.ops.convert_to_numpy(own_part(tensor)))


def same_values(ones: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of one dtype are equal, pair by pair. NaN equals NaN."""
    same = [
        ((a == b) | (a.isnan() & b.isnan())).all()
        for a, b in (
            (own_part(one).detach(), own_part(other).to(one.device))
            for one, other in zip(ones, others, strict=True)
        )
    ]
    if not same:
        return []
    flags = torch.stack(same)
    if any(map(_is_sharded, ones)):
        flags = flags.to(torch.uint8)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN)
    # One wait for the device, not one for each pair.
    return [bool(flag) for flag in flags.tolist()]


def randomness_kept() -> Any:
    """Context that gives the state of the host's generator back.

    Each `DataLoader` draws a seed from it, so that reading data changes what
    `Dropout` and shuffling do next.
    """
    return torch.random.fork_rng(devices=[])
