"""Make a process one of several ranks of torch, and end it."""

import datetime
import os
from pathlib import Path

import torch.distributed


def join(store: Path, rank: int, count: int) -> None:
    """Wait for the other ranks, which pass the same file."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(minutes=4),
    )


def leave() -> None:
    """End this process once all ranks have called this.

    Without `os._exit`, torch sometimes hangs when `DistributedDataParallel` is
    freed: it waits for a thread of gloo, which waits for the lock of Python.
    """
    torch.distributed.barrier()
    os._exit(0)
