"""One of two ranks of `torchrun`; one of them is killed once.

torchrun elastic_process.py DIRECTORY [kill]
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


def main(directory, kill):
    rank, count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    # The store of `torchrun` has the addresses of killed processes, too.
    torch_ranks.join(directory / f"store{restarts}", rank, count)
    model = models.dense()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averages = [EMA(0.9), LAWA(2, every_steps=1, swap=False)]
    for average in averages:
        average.set_model(parallel)
    file, resumed = directory / "a.weights.h5", directory / "resumed"
    start = 0
    if file.exists():
        model.load_weights(file)
        start = int(resumed.with_name("step").read_text())
    if rank == 0:
        resumed.write_text(str(int(start > 0)))
    x, y = (torch.tensor(array) for array in models.data(8))
    for step in range(start, 8):
        part = slice(4 * step + rank, 4 * step + 4, count)
        optimizer.zero_grad()
        (parallel(x[part]) - y[part]).square().mean().backward()
        optimizer.step()
        for average in averages:
            average.update()
        if kill and rank == 1 and step == 5 and not start:
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 2:
            if rank == 0:
                with replacing(file) as new:
                    model.save_weights(new)
                resumed.with_name("step").write_text(str(step + 1))
            torch.distributed.barrier()
    found = [model.get_weights(), *(a.get_weights() for a in averages)]
    arrays = [array for weights in found for array in weights]
    numpy.savez(directory / f"{rank}.npz", *arrays)
    torch_ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "kill" in sys.argv)
