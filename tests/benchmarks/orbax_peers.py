"""Alternatives for averaging Orbax checkpoints, each for a separate process.

    python tests/benchmarks/orbax_peers.py FUNCTION OUTPUT STEP [STEP ...]

Each function imports only what it needs, because imports count in its time and
memory.
"""

import os
import sys
import threading
from pathlib import Path


def limit(output: str, *steps: str) -> None:
    """Read all bytes, write those of one with two threads, and sync them."""
    files = [[p for p in Path(s).rglob("*") if p.is_file()] for s in steps]
    Path(output).mkdir()

    def copy(first: int) -> None:
        for step in files[first::2]:
            for path in step:
                data = path.read_bytes()
                if step is files[-1]:
                    target = Path(output, path.name)
                    target.write_bytes(data)
                    with target.open("rb") as written:
                        os.fsync(written.fileno())

    threads = [threading.Thread(target=copy, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def whole_trees(output: str, *steps: str) -> None:
    """Restore each tree with Orbax and sum its arrays."""
    # Orbax refuses another number of devices than the trees were saved on.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax
    import numpy
    from orbax.checkpoint import v1 as ocp

    total = None
    for step in steps:
        tree = ocp.load_checkpointables(step, {"pytree": None})["pytree"]
        tree = jax.tree.map(numpy.asarray, tree)
        if total is None:
            total = jax.tree.map(lambda array: array.astype("float64"), tree)
        else:
            jax.tree.map(
                lambda one, two: numpy.add(one, two, out=one), total, tree
            )
    mean = jax.tree.map(
        lambda one, like: (one / len(steps)).astype(like.dtype), total, tree
    )
    ocp.save_checkpointables(output, {"pytree": mean})


def make(directory: str, megabytes: str, count: str, devices: str) -> None:
    """Save trees of different weights, sharded over the devices."""
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices}"
    )
    import jax
    import numpy
    from orbax.checkpoint import v1 as ocp

    mesh = jax.make_mesh((int(devices),), ("model",))
    spec = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, "model")
    )
    units, rng = 2048, numpy.random.default_rng(0)
    layers = round(float(megabytes) * 1e6 / (4 * units**2))
    with ocp.training.Checkpointer(directory) as checkpointer:
        for step in range(int(count)):
            weights = {
                f"dense_{k}": {
                    "kernel": jax.device_put(
                        rng.standard_normal((units, units), "float32"), spec
                    )
                }
                for k in range(layers)
            }
            tree = {"trainable_variables": weights}
            checkpointer.save_checkpointables(step, {"pytree": tree})


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
