"""Train on two workers of Ray, with an average that survives a killed worker.

The workers train one model of JAX together, by `keras.distribution`. After each
epoch Orbax saves the weights, the optimizer and the average; if a worker dies,
Ray starts all of them again, and they go on from the last checkpoint.

    pip install "ray[train]" jax orbax-checkpoint scikit-learn keras-wavg
    python ray_train.py          # from the beginning to the end
    python ray_train.py --kill   # one worker is killed in the third epoch

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
KILLED_IN = 2


def join_processes(rank: int) -> None:
    """Let JAX know all workers. It comes before Keras is imported."""
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
    """A classifier of the digits, on the devices of all workers."""
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
    """What a worker trains on: its part of each batch."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    count = 1280  # Whole batches; the rest is to test on.
    own = slice(rank, count, WORKERS)
    return (x[own], y[own]), (x[count:], y[count:])


def work(config: dict) -> None:
    """What each worker does, from the start or from the last checkpoint."""
    rank = train.get_context().get_world_rank()
    join_processes(rank)

    import keras

    from keras_wavg import EMA

    folder, mark = Path(config["folder"]), Path(config["folder"], "killed")
    model, ema = build(), EMA(0.98)
    ema.set_model(model)
    orbax = keras.callbacks.OrbaxCheckpoint(
        folder / "orbax", save_on_background=False
    )
    names = [step.name for step in folder.glob("orbax/*")]
    epochs = [int(name) for name in names if name.isdecimal()]
    if epochs:
        model.load_weights(folder / "orbax")
    first = max(epochs, default=-1) + 1

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            del logs
            is_due = config["kill"] and rank == 1 and epoch == KILLED_IN
            if is_due and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    trained, tested = data(rank)
    model.fit(
        *trained,
        batch_size=BATCH_SIZE // WORKERS,
        epochs=EPOCHS,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=[ema, orbax, Kill()],
    )
    # Each worker tests on the same digits, so the score is that of one.
    averaged = model.evaluate(*tested, verbose=0, return_dict=True)
    ema.restore()
    raw = model.evaluate(*tested, verbose=0, return_dict=True)
    scores = {"first": first, "averaged": averaged, "raw": raw}
    if rank == 0:
        (folder / "scores.json").write_text(json.dumps(scores))


def main() -> None:
    """Train, and print what the model with the average scores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        runtime_env={"env_vars": environment},
    )
    with tempfile.TemporaryDirectory() as folder:
        DataParallelTrainer(
            work,
            train_loop_config={"folder": folder, "kill": arguments.kill},
            scaling_config=train.ScalingConfig(num_workers=WORKERS),
            run_config=train.RunConfig(
                storage_path=folder,
                failure_config=train.FailureConfig(max_failures=1),
            ),
        ).fit()
        scores = json.loads(Path(folder, "scores.json").read_text())
    print(f"last started at epoch {scores.pop('first')}")
    for name, score in scores.items():
        print(f"{name}: loss {score['loss']:.6f}, ", end="")
        print(f"accuracy {score['accuracy']:.4f}")


if __name__ == "__main__":
    main()
