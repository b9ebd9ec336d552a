"""One of two processes that train a model with DistributedDataParallel.

python ddp_process.py RANK COUNT PORT DIRECTORY
"""

import json
import sys
from pathlib import Path

import models
import reference
import torch
import torch_ranks

from keras_wavg import EMA, LAWA, SWA, SWAG, update_bn


def build():
    model = models.nested()
    return model, torch.nn.parallel.DistributedDataParallel(model)


MEANS = {"swa": SWA, "lawa": LAWA, "swag": SWAG}


def train(model, parallel, ema, rank, steps=6, means=()):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = (torch.tensor(a[rank::2]) for a in models.data(steps))
    samples = []
    for step in range(steps):
        batch = slice(4 * step, 4 * step + 4)
        optimizer.zero_grad()
        loss = (parallel(x[batch], training=True) - y[batch]).square().mean()
        loss.backward()
        optimizer.step()
        for average in (ema, *means):
            average.update()
        samples.append(model.get_weights())
    return samples


def main(rank, directory):
    torch_ranks.join(directory / "store", rank, 2)
    model, parallel = build()
    ema = EMA(0.9)
    ema.set_model(parallel)
    means = [method(every_steps=2) for method in MEANS.values()]
    for mean in means:
        mean.set_model(parallel)
    samples = train(model, parallel, ema, rank, means=means)
    averages = ema.get_weights()
    expected = reference.ema(samples, 0.9)
    expected_mean = reference.mean(samples[1::2])
    with means[0].applied():
        update_bn(model, models.data(6)[0], verbose=0)

    file = directory / f"{rank}.weights.h5"
    model.save_weights(file)
    other, parallel_resumed = build()
    resumed = EMA(0.9)
    resumed.set_model(parallel_resumed)
    other.load_weights(file)
    train(model, parallel, ema, rank)
    train(other, parallel_resumed, resumed, rank)

    report = {
        "error": reference.relative_error(averages, expected),
        "means": [
            reference.relative_error(mean.get_weights(), expected_mean)
            for mean in means
        ],
        "resumed": models.equal(resumed.get_weights(), ema.get_weights()),
        "averages": {
            weight.path: average.tolist()
            for weight, average in zip(model.weights, averages, strict=True)
        },
    }
    (directory / f"{rank}.json").write_text(json.dumps(report))
    torch_ranks.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[4]))
