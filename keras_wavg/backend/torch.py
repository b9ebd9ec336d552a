"""Values of variables on torch."""

import contextlib
import functools
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy
import torch


def _is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a `DTensor`, sharded across ranks."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Any) -> Any:
    """The part of a tensor on this rank."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def placed_like(value: Any, variable: Any) -> Any:
    """A value, sharded like a Keras variable.

    Args:
        value: Tensor or array, the whole value or the part of this rank.
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
    replicated = [module.Replicate()] * mesh.ndim
    return from_local(tensor, placements=replicated).redistribute(
        mesh, placements
    )


def unreadable(variables: Sequence[Any]) -> list[str]:
    """Paths of the variables that are sharded across ranks."""
    return [v.path for v in variables if _is_sharded(v.value)]


def span_processes(variables: Sequence[Any]) -> bool:
    """Whether any variable is sharded across ranks."""
    return any(_is_sharded(variable.value) for variable in variables)


def paths_without_parameters(model: Any) -> list[str]:
    """Paths of the weights whose parameters `fully_shard` replaced.

    Optimizers train the new parameters, while Keras uses the old tensors.
    """
    parameters = list(model.parameters())
    if not any(map(_is_sharded, parameters)):
        return []
    known = set(map(id, parameters))
    weights = model.trainable_variables
    return [weight.path for weight in weights if id(weight.value) not in known]


def normalization_modules(layer: Any) -> dict[str, Any]:
    """The modules in a `TorchModuleWrapper` that have moving statistics."""
    if not isinstance(layer, keras.layers.TorchModuleWrapper):
        return {}
    return {
        name: module
        for name, module in layer.module.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
    }


def device_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, on their devices."""
    return [variable.value.detach().clone() for variable in variables]


def host_copies(variables: Sequence[Any]) -> list[torch.Tensor]:
    """Copies of the values of Keras variables, in host memory."""
    parts = [local_part(variable.value.detach()) for variable in variables]
    return [part.to("cpu", copy=True) for part in parts]


def host_copy(tensor: Any) -> Any:
    """A copy of the local part of a tensor, as a NumPy array."""
    return numpy.array(keras.ops.convert_to_numpy(local_part(tensor)))


def same_values(arrays: Sequence[Any], others: Sequence[Any]) -> list[bool]:
    """Whether arrays of the same dtype are equal, pair by pair."""
    same = [
        ((a == b) | (a.isnan() & b.isnan())).all()
        for a, b in (
            (local_part(array).detach(), local_part(other).to(array.device))
            for array, other in zip(arrays, others, strict=True)
        )
    ]
    if not same:
        return []
    flags = torch.stack(same)
    if any(map(_is_sharded, arrays)):
        flags = flags.to(torch.uint8)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MIN)
    # Wait for the device once, not for each pair.
    return [bool(flag) for flag in flags.tolist()]


def preserved_random_state() -> contextlib.AbstractContextManager[Any]:
    """Context that preserves the state of the host's random generator.

    Each `DataLoader` draws a seed from it. Without this, reading data would
    change the next random numbers of `Dropout` and shuffling.
    """
    return torch.random.fork_rng(devices=[])
