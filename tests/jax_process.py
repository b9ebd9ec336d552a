"""One of several processes that train a model of JAX together.

python jax_process.py RANK COUNT PORT TASK LAYOUT FOLDER
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


def own(array, layout):
    """What this process reads of the data: its part of each batch, or all."""
    if layout == "model":
        return array
    parts = array.reshape(STEPS, COUNT, -1, array.shape[1])
    return parts[:, RANK].reshape(-1, array.shape[1])


class Run:
    """A model, its data and its averages."""

    def __init__(self, layout):
        self.layout = layout
        self.x, self.y = own(X, layout), own(Y, layout)
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
        # Of a Sequential model `load_model` reads no weights from Orbax.
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
            BEMA(every=2, swap=False),
            FGE(4),
            SWA(bn_data=self.batches(), name="swa"),
        ]
        return {average.name: average for average in averages}

    def batches(self):
        """The inputs as a list that is gone through again and again."""
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
        return [whole(variable.value) for variable in model.weights]

    def held(self, average, model):
        """What the model holds while an average is in it."""
        with average.applied():
            return self.weights(model)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, size):
        super().__init__()
        self.x, self.size = x, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        return self.x[index * self.size : (index + 1) * self.size]


def whole(array):
    if array.is_fully_addressable or array.is_fully_replicated:
        return numpy.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def refusals(run, folder):
    """What each process is told where it has a part of the weights only."""
    told = {}
    model = run.new()
    calls = {
        "get": run.averages["ema"].get_weights,
        "save": lambda: run.averages["ema"].save_weights(
            folder / f"{RANK}.weights.h5"
        ),
        "snapshots": lambda: run.fit(
            model, PowerEMA(0.1, snapshots=folder / f"snapshots{RANK}")
        ),
        "members": lambda: run.fit(
            model, FGE(4, folder=folder / f"members{RANK}")
        ),
        "seed": run.averages["swag"].sample().__enter__,
    }
    for name, call in calls.items():
        try:
            call()
            told[name] = "nothing"
        except ValueError as error:
            told[name] = str(error)
    return told


def train(layout, folder):
    """A training with each average, its checkpoint, and how it goes on."""
    run = Run(layout)
    orbax = keras.callbacks.OrbaxCheckpoint(
        folder / "orbax",
        max_to_keep=None,
        save_on_background=layout == "data",
    )
    evaluator = AverageEvaluator(
        run.x, run.y, averages=[run.averages["ema"]], batch_size=run.size
    )
    averages = run.averages.values()
    history = run.fit(run.model, *averages, evaluator, orbax).history
    orbax.wait_until_finished()
    # Each process averages its share, without a word to the others.
    average_checkpoints(
        [folder / "orbax"],
        folder / "mean",
        steps=MEAN_OF,
        process=(RANK, COUNT),
    )
    if layout == "data" and RANK == COUNT - 1:
        # One process alone: the others are not waited for. `model.save_weights`
        # of Keras waits for them, where it makes an optimizer to look at.
        run.averages["ema"].save_weights(folder / "alone.weights.h5")
    found = {f"{name}_score": scores for name, scores in history.items()}
    held = {n: run.held(a, run.model) for n, a in run.averages.items()}
    found |= flat(held)
    with run.averages["swag"].sample(seed=3):
        found |= flat({"sample": run.weights(run.model)})
    program = probe.program(run.averages["ema"])
    moves = "all-gather|all-to-all|all-reduce|collective|scatter"
    found["moves"] = numpy.array(re.findall(moves, program))
    found |= {f"told_{k}": v for k, v in refusals(run, folder).items()}

    other, again = run.new(), run.each_average()
    for average in again.values():
        average.set_model(other)
    other.load_weights(folder / "orbax")
    plain = keras.saving.load_model(folder / "orbax")
    shown = zip(run.weights(plain), run.weights(other), strict=True)
    found["plain"] = all(numpy.array_equal(*pair) for pair in shown)
    same = flat({n: run.held(a, other) for n, a in again.items()})
    found["loaded"] = all(numpy.array_equal(same[k], found[k]) for k in same)
    for model, callbacks in ((run.model, run.averages), (other, again)):
        run.fit(model, *callbacks.values(), epochs=1)
    ends = [
        flat({n: run.held(a, m) for n, a in averages.items()})
        for m, averages in ((run.model, run.averages), (other, again))
    ]
    found["goes_on"] = all(
        numpy.array_equal(ends[0][key], array) for key, array in ends[1].items()
    )

    model = run.new()
    run.fit(model, Lookahead(every=2), epochs=1)
    update_bn(model, run.batches(), verbose=0)
    found |= flat({"lookahead": run.weights(model)})
    numpy.savez(folder / f"{RANK}.npz", **found)


def deploy(layout, folder):
    """A file that any process reads, made of a checkpoint of several."""
    run = Run(layout)
    run.averages["ema"].set_model(run.model)
    run.model.load_weights(folder / "orbax")
    run.averages["ema"].save_weights(folder / "deployed.weights.h5")


class Slowly(keras.callbacks.Callback):
    """Gives the test the time to kill a process."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.02)


def resume(layout, folder):
    """Train to the end, from the last checkpoint if there is one."""
    run = Run(layout)
    averages = {name: run.averages[name] for name in ("ema", "lawa", "cpu")}
    for average in averages.values():
        average.set_model(run.model)
    first = 0
    if any(child.name.isdecimal() for child in folder.glob("orbax/*")):
        run.model.load_weights(folder / "orbax")
        first = int(run.model.optimizer.iterations) // STEPS
    orbax = keras.callbacks.OrbaxCheckpoint(
        folder / "orbax", save_on_background=False
    )
    (folder / f"{RANK}.began").write_text(str(first))
    callbacks = [*averages.values(), orbax, Slowly()]
    run.fit(run.model, *callbacks, epochs=6, initial_epoch=first)
    held = {n: run.held(a, run.model) for n, a in averages.items()}
    averages["ema"].restore()
    held["raw"] = run.weights(run.model)
    counts = {f"{n}_counts": probe.counts(a) for n, a in averages.items()}
    numpy.savez(folder / f"{RANK}.npz", **flat(held), **counts)


def flat(arrays):
    return {
        f"{name}_{index}": array
        for name, weights in arrays.items()
        for index, array in enumerate(weights)
    }


if __name__ == "__main__":
    TASKS = {"train": train, "deploy": deploy, "resume": resume}
    TASKS[sys.argv[4]](sys.argv[5], Path(sys.argv[6]))
