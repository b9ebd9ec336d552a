"""Train on two workers of Ray, with an average, and resume after a failure.

The workers train one model with JAX and `keras.distribution`. After each epoch,
Orbax saves the weights, the optimizer and the average. If a worker is killed,
Ray restarts all workers, and training resumes from the last checkpoint.

    pip install "ray[train]" jax orbax-checkpoint scikit-learn keras-wavg
    python ray_train.py          # without a failure
    python ray_train.py --kill   # a worker is killed in the third epoch

Both print the same scores.
"""

import argparse
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

WORKERS = 2
EPOCHS = 20
BATCH_SIZE = 64
KILL_EPOCH = 2


def join_processes(rank: int) -> None:
    """Connect JAX to all workers. Call this before you import Keras."""
    import jax
    from ray.train.collective import broadcast_from_rank_zero
    from ray.util import get_node_ip_address

    address = None
    if rank == 0:
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            address = f"{get_node_ip_address()}:{free.getsockname()[1]}"
    address = broadcast_from_rank_zero(address)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, WORKERS, rank)


def build() -> Any:
    """Build a classifier of digits on the devices of all workers."""
    import keras

    keras.distribution.set_distribution(
        keras.distribution.DataParallel(auto_shard_dataset=False)
    )
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,), name="pixels")
    hidden = keras.layers.Dense(64, "relu", name="hidden")(inputs)
    outputs = keras.layers.Dense(10, "softmax", name="classes")(hidden)
    model = keras.Model(inputs, outputs, name="digits")
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.optimizer.build(model.trainable_variables)
    return model


def data(rank: int) -> Any:
    """Return the part of a worker of each batch, and the test data."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    count = 1280  # Whole batches. The others are test data.
    part = slice(rank, count, WORKERS)
    return (x[part], y[part]), (x[count:], y[count:])


def work(config: dict) -> None:
    """Train in a worker, from the last checkpoint if there is one."""
    rank = train.get_context().get_world_rank()
    join_processes(rank)

    import keras

    from keras_wavg import EMA

    directory = Path(config["directory"])
    killed = directory / "killed"
    model, ema = build(), EMA(0.98)
    ema.set_model(model)
    orbax = keras.callbacks.OrbaxCheckpoint(
        directory / "orbax", save_on_background=False
    )
    names = [step.name for step in directory.glob("orbax/*")]
    epochs = [int(name) for name in names if name.isdecimal()]
    if epochs:
        model.load_weights(directory / "orbax")
    initial_epoch = max(epochs, default=-1) + 1

    # Ray pickles this function without the globals of class bodies.
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            del logs
            is_due = config["kill"] and rank == 1 and epoch == KILL_EPOCH
            if is_due and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    training, test = data(rank)
    model.fit(
        *training,
        batch_size=BATCH_SIZE // WORKERS,
        epochs=EPOCHS,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[ema, orbax, Kill()],
    )
    # All workers evaluate the same test data.
    averaged = model.evaluate(*test, verbose=0, return_dict=True)
    ema.restore()
    raw = model.evaluate(*test, verbose=0, return_dict=True)
    scores = {"initial_epoch": initial_epoch, "averaged": averaged, "raw": raw}
    if rank == 0:
        (directory / "scores.json").write_text(json.dumps(scores))


def main() -> None:
    """Train, and print the scores of the average and the raw weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        runtime_env={"env_vars": environment},
    )
    with tempfile.TemporaryDirectory() as directory:
        DataParallelTrainer(
            work,
            train_loop_config={"directory": directory, "kill": arguments.kill},
            scaling_config=train.ScalingConfig(num_workers=WORKERS),
            run_config=train.RunConfig(
                storage_path=directory,
                failure_config=train.FailureConfig(max_failures=1),
            ),
        ).fit()
        scores = json.loads(Path(directory, "scores.json").read_text())
    print(f"last started at epoch {scores.pop('initial_epoch')}")
    for name, score in scores.items():
        print(f"{name}: loss {score['loss']:.6f}, ", end="")
        print(f"accuracy {score['accuracy']:.4f}")


if __name__ == "__main__":
    main()
