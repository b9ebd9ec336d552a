"""One of several ranks that train a model with `fully_shard` of torch.

python fsdp_process.py RANK COUNT PORT DIRECTORY
"""

import sys
from pathlib import Path

import models
import numpy
import torch
import torch_ranks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from keras_wavg import EMA, LAWA


def shard(model, *, bound):
    """Shard the weights over the ranks; variables follow them if `bound`."""
    slots = [
        (module, name, variable)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        for variable in model.variables
        if parameter is variable.value
    ]
    fully_shard(model)

    def follow(*_):
        for module, name, variable in slots:
            variable._value = module._parameters[name]

    if bound:
        follow()
        model.register_forward_pre_hook(follow)
        model.register_forward_hook(follow)
    return follow


def gathered(tensor):
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().numpy().copy()


def weights(model):
    return [gathered(variable.value) for variable in model.weights]


def refusal(model):
    shard(model, bound=False)
    try:
        EMA(0.9).set_model(model)
    except ValueError as error:
        return str(error)
    return "no error"


def main(rank, count, directory):
    torch_ranks.join(directory / "store", rank, count)
    found = {"error": refusal(models.dense())}
    model = models.dense()
    follow = shard(model, bound=True)
    averages = {
        "ema": EMA(0.9),
        "cpu": EMA(0.9, device="cpu", name="cpu"),
        "lawa": LAWA(2, every_steps=2),
    }
    for average in averages.values():
        average.set_model(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = (torch.tensor(array) for array in models.data(6))
    samples = []
    for batch in range(6):
        part = slice(4 * batch + rank, 4 * batch + 4, count)
        optimizer.zero_grad()
        (model(x[part]) - y[part]).square().mean().backward()
        optimizer.step()
        follow()
        for average in averages.values():
            average.update()
        samples.append(weights(model))
    kinds = {type(v.value).__name__ for v in model.variables}
    for name, average in averages.items():
        with average.applied():
            found |= {f"{name}_{i}": w for i, w in enumerate(weights(model))}
            kinds |= {type(v.value).__name__ for v in model.variables}
    found |= {f"raw_{i}": w for i, w in enumerate(weights(model))}
    for step, sample in enumerate(samples):
        found |= {f"step{step}_{i}": w for i, w in enumerate(sample)}
    found["kinds"] = sorted(kinds)
    try:
        averages["ema"].get_weights()
    except ValueError as error:
        found["error_get"] = str(error)
    numpy.savez(directory / f"{rank}.npz", **found)
    torch_ranks.leave()


if __name__ == "__main__":
    rank, count, _, directory = sys.argv[1:]
    main(int(rank), int(count), Path(directory))
