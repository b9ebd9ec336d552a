"""Benchmark of `fit` with an average in one JAX process and in two.

    python tests/benchmarks/bench_processes.py

Trains a model with 7.9 million weights on two devices of this machine, either
in one process, or in two processes over loopback.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import processes

BATCH, STEPS, ROUNDS = 64, 20, 10


def main() -> None:
    """Print one line for each number of processes."""
    script = Path("benchmarks") / Path(__file__).name
    for count in (1, 2):
        processes.finish(processes.start(str(script), count))


def measure(rank: int, count: int, port: str) -> None:
    """Train alternately without and with an average."""
    os.environ["KERAS_BACKEND"] = "jax"
    devices = f"--xla_force_host_platform_device_count={2 // count}"
    os.environ["XLA_FLAGS"] = devices
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    import keras
    import numpy

    from keras_wavg import EMA

    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    x = numpy.random.default_rng(0).normal(size=(BATCH * STEPS, 512))
    x = x.astype("float32")[rank::count]
    y = numpy.zeros(len(x), int)

    def new_model():
        keras.utils.set_random_seed(0)
        wide = [keras.layers.Dense(1024, activation="relu") for _ in range(8)]
        model = keras.Sequential([keras.Input((512,)), *wide])
        model.compile("adam", "sparse_categorical_crossentropy")
        return model

    def seconds(model, *callbacks):
        start = time.perf_counter()
        model.fit(
            x,
            y,
            batch_size=BATCH // count,
            verbose=0,
            shuffle=False,
            callbacks=[*callbacks],
        )
        jax.block_until_ready([weight.value for weight in model.weights])
        return time.perf_counter() - start

    plain, averaged, ema = new_model(), new_model(), EMA(0.999)
    pairs = []
    for _ in range(ROUNDS + 2):
        pairs.append((seconds(plain), seconds(averaged, ema)))
        ema.restore()
    pairs = pairs[2:]
    step = statistics.median(without for without, _ in pairs) / STEPS
    ratio = statistics.median(with_ema / without for without, with_ema in pairs)
    if rank == 0:
        print(
            f"processes: {count}, a step of `fit`: {1e3 * step:.0f} ms, ratio "
            f"with `EMA`: {ratio:.3f}"
        )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
