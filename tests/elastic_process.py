"""One of two ranks of `torchrun`, of which one is killed in its first life.

torchrun elastic_process.py FOLDER [kill]
"""

import os
import signal
import sys
from pathlib import Path

import models
import numpy
import torch
import torch.distributed
import torch_ranks

from keras_wavg import EMA, LAWA
from keras_wavg.atomic import replacing


def main(folder, kill):
    rank, count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    life = os.environ["TORCHELASTIC_RESTART_COUNT"]
    # In the store of `torchrun` gloo finds addresses of processes that died.
    torch_ranks.join(folder / f"store{life}", rank, count)
    model = models.dense()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averages = [EMA(0.9), LAWA(2, every_steps=1, swap=False)]
    for average in averages:
        average.set_model(parallel)
    file, began = folder / "a.weights.h5", folder / "began"
    first = 0
    if file.exists():
        model.load_weights(file)
        first = int(began.with_name("step").read_text())
    if rank == 0:
        began.write_text(str(int(first > 0)))
    x, y = (torch.tensor(array) for array in models.data(8))
    for step in range(first, 8):
        own = slice(4 * step + rank, 4 * step + 4, count)
        optimizer.zero_grad()
        (parallel(x[own]) - y[own]).square().mean().backward()
        optimizer.step()
        for average in averages:
            average.update()
        if kill and rank == 1 and step == 5 and not first:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 2:
            if rank == 0:
                with replacing(file) as new:
                    model.save_weights(new)
                began.with_name("step").write_text(str(step + 1))
            torch.distributed.barrier()
    held = [model.get_weights(), *(a.get_weights() for a in averages)]
    arrays = [array for weights in held for array in weights]
    numpy.savez(folder / f"{rank}.npz", *arrays)
    torch_ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "kill" in sys.argv)
