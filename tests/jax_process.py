"""One of several processes that train a model of JAX together.

python jax_process.py RANK COUNT PORT TASK LAYOUT DIRECTORY
"""

import os
import re
import sys
import time
from pathlib import Path

RANK, COUNT = int(sys.argv[1]), int(sys.argv[2])
DEVICES = 4
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    f"--xla_force_host_platform_device_count={DEVICES // COUNT}"
)
os.environ["KERAS_BACKEND"] = "jax"

import jax  # noqa: E402

jax.config.update("jax_cpu_collectives_implementation", "gloo")
if COUNT > 1:
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", COUNT, RANK)

import keras  # noqa: E402
import models  # noqa: E402
import numpy  # noqa: E402
import probe  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from keras_wavg import (  # noqa: E402
    BEMA,
    EMA,
    FGE,
    LAWA,
    SWA,
    SWAG,
    AverageEvaluator,
    Lookahead,
    PowerEMA,
    average_checkpoints,
    update_bn,
)

BATCH, STEPS = 16, 6
MEAN_OF = 0, 1
X, Y = (
    numpy.resize(array, (BATCH * STEPS, array.shape[1]))
    for array in models.data(BATCH * STEPS // 4)
)


def data_parallel():
    return keras.distribution.DataParallel(auto_shard_dataset=False)


def model_parallel():
    """Each weight is spread over all processes, where it can be."""
    mesh = keras.distribution.DeviceMesh(
        (1, DEVICES), ("batch", "model"), keras.distribution.list_devices()
    )
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*wide/kernel"] = (None, "model")
    layout[".*wide(/bias|_normal/.*)"] = ("model",)
    layout[".*out/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


def one_device():
    devices = keras.distribution.list_devices()[:1]
    return keras.distribution.DataParallel(devices=devices)


LAYOUTS = {
    "data": data_parallel,
    "model": model_parallel,
    "one": one_device,
}


def local_part(array, layout):
    """The data of this process: its part of each batch, or all."""
    if layout == "model":
        return array
    parts = array.reshape(STEPS, COUNT, -1, array.shape[1])
    return parts[:, RANK].reshape(-1, array.shape[1])


class Run:
    """A model, its data and its averages."""

    def __init__(self, layout):
        self.layout = layout
        self.x, self.y = local_part(X, layout), local_part(Y, layout)
        self.size = BATCH // (COUNT if layout == "data" else 1)
        self.model = self.new()
        self.averages = self.each_average()

    def new(self):
        keras.utils.clear_session()
        keras.distribution.set_distribution(LAYOUTS[self.layout]())
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        wide = keras.layers.Dense(32, activation="tanh", name="wide")(inputs)
        normal = keras.layers.BatchNormalization(name="wide_normal")(wide)
        outputs = keras.layers.Dense(1, name="out")(normal)
        # `load_model` reads no weights of a Sequential model from Orbax.
        model = keras.Model(inputs, outputs, name="wide")
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    def each_average(self):
        averages = [
            EMA(0.9, name="ema", swap=False),
            EMA(0.9, name="cpu", swap=False, device="cpu"),
            EMA(0.9, name="part", swap=False, device="cpu", include="wide"),
            PowerEMA((0.1, 0.2), swap=False),
            LAWA(2, every_steps=2, swap=False),
            SWAG(rank=2, every_steps=3, swap=False),
            BEMA(every_steps=2, swap=False),
            FGE(4),
            SWA(batch_norm_data=self.batches(), name="swa"),
        ]
        return {average.name: average for average in averages}

    def batches(self):
        """The inputs, which can be iterated repeatedly."""
        return Batches(self.x, self.size)

    def fit(self, model, *callbacks, epochs=2, **options):
        return model.fit(
            self.x,
            self.y,
            batch_size=self.size,
            shuffle=False,
            epochs=epochs,
            verbose=0,
            callbacks=[*callbacks],
            **options,
        )

    def weights(self, model):
        return [gathered(variable.value) for variable in model.weights]

    def all_averages(self, model, averages):
        """The weights of the model while each average is swapped in."""
        found = {}
        for name, average in averages.items():
            with average.applied():
                found[name] = self.weights(model)
        return found


class Batches(keras.utils.PyDataset):
    def __init__(self, x, size):
        super().__init__()
        self.x, self.size = x, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        return self.x[index * self.size : (index + 1) * self.size]


def gathered(array):
    if array.is_fully_addressable or array.is_fully_replicated:
        return numpy.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def refused_calls(run, directory):
    """Errors of calls that need all weights in one process."""
    errors = {}
    model = run.new()
    calls = {
        "get": run.averages["ema"].get_weights,
        "save": lambda: run.averages["ema"].save_weights(
            directory / f"{RANK}.weights.h5"
        ),
        "snapshots": lambda: run.fit(
            model, PowerEMA(0.1, snapshot_dir=directory / f"snapshots{RANK}")
        ),
        "members": lambda: run.fit(
            model, FGE(4, member_dir=directory / f"members{RANK}")
        ),
        "seed": run.averages["swag"].sample().__enter__,
    }
    for name, call in calls.items():
        try:
            call()
            errors[name] = "no error"
        except ValueError as error:
            errors[name] = str(error)
    return errors


def train(layout, directory):
    """Train with each average, save checkpoints, and resume from them."""
    run = Run(layout)
    orbax = keras.callbacks.OrbaxCheckpoint(
        directory / "orbax",
        max_to_keep=None,
        save_on_background=layout == "data",
    )
    evaluator = AverageEvaluator(
        run.x, run.y, averages=[run.averages["ema"]], batch_size=run.size
    )
    averages = run.averages.values()
    history = run.fit(run.model, *averages, evaluator, orbax).history
    orbax.wait_until_finished()
    # Each process averages its part, without communication.
    average_checkpoints(
        [directory / "orbax"],
        directory / "mean",
        steps=MEAN_OF,
        process=(RANK, COUNT),
    )
    if layout == "data" and RANK == COUNT - 1:
        # One process alone, without the others. `model.save_weights` of Keras
        # would wait for them when it creates an optimizer to compare with.
        run.averages["ema"].save_weights(directory / "alone.weights.h5")
    found = {f"{name}_score": scores for name, scores in history.items()}
    found |= flat(run.all_averages(run.model, run.averages))
    with run.averages["swag"].sample(seed=3):
        found |= flat({"sample": run.weights(run.model)})
    program = probe.program(run.averages["ema"])
    collectives = "all-gather|all-to-all|all-reduce|collective|scatter"
    found["collectives"] = numpy.array(re.findall(collectives, program))
    found |= {f"error_{k}": v for k, v in refused_calls(run, directory).items()}

    other, again = run.new(), run.each_average()
    for average in again.values():
        average.set_model(other)
    other.load_weights(directory / "orbax")
    plain = keras.saving.load_model(directory / "orbax")
    shown = zip(run.weights(plain), run.weights(other), strict=True)
    found["plain"] = all(numpy.array_equal(*pair) for pair in shown)
    same = flat(run.all_averages(other, again))
    found["loaded"] = all(numpy.array_equal(same[k], found[k]) for k in same)
    for model, callbacks in ((run.model, run.averages), (other, again)):
        run.fit(model, *callbacks.values(), epochs=1)
    ends = [
        flat(run.all_averages(*pair))
        for pair in ((run.model, run.averages), (other, again))
    ]
    found["resumed"] = all(
        numpy.array_equal(ends[0][key], array) for key, array in ends[1].items()
    )

    model = run.new()
    run.fit(model, Lookahead(every_steps=2), epochs=1)
    update_bn(model, run.batches(), verbose=0)
    found |= flat({"lookahead": run.weights(model)})
    numpy.savez(directory / f"{RANK}.npz", **found)


def deploy(layout, directory):
    """Save a file for any process, from a checkpoint of several."""
    run = Run(layout)
    run.averages["ema"].set_model(run.model)
    run.model.load_weights(directory / "orbax")
    run.averages["ema"].save_weights(directory / "deployed.weights.h5")


class Slowly(keras.callbacks.Callback):
    """Gives the test time to kill a process."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)


def resume(layout, directory):
    """Train to the end, from the last checkpoint if there is one."""
    run = Run(layout)
    averages = {name: run.averages[name] for name in ("ema", "lawa", "cpu")}
    for average in averages.values():
        average.set_model(run.model)
    first = 0
    if any(child.name.isdecimal() for child in directory.glob("orbax/*")):
        run.model.load_weights(directory / "orbax")
        first = int(run.model.optimizer.iterations) // STEPS
    orbax = keras.callbacks.OrbaxCheckpoint(
        directory / "orbax", save_on_background=False
    )
    (directory / f"{RANK}.start").write_text(str(first))
    callbacks = [*averages.values(), orbax, Slowly()]
    run.fit(run.model, *callbacks, epochs=6, initial_epoch=first)
    found = run.all_averages(run.model, averages)
    averages["ema"].restore()
    found["raw"] = run.weights(run.model)
    counts = {f"{n}_counts": probe.counts(a) for n, a in averages.items()}
    numpy.savez(directory / f"{RANK}.npz", **flat(found), **counts)


def flat(arrays):
    return {
        f"{name}_{index}": array
        for name, weights in arrays.items()
        for index, array in enumerate(weights)
    }


if __name__ == "__main__":
    TASKS = {"train": train, "deploy": deploy, "resume": resume}
    TASKS[sys.argv[4]](sys.argv[5], Path(sys.argv[6]))
