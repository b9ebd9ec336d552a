"""Training runs, in a process that may be killed during one of them.

    python killed_process.py '[{"directory": "...", "kind": "plain"}, ...]'

A run with `kill` sends SIGKILL to its own process there.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import keras
import models
import numpy
import probe

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, SwitchEMA

EPOCHS = 4
KINDS = {
    "plain": {},
    "measured": {"measured": True},
    "accumulated": {"accumulate": 4, "steps": 6},
    "scaled": {"scale": True, "steps": 12},
}


def averages(kind, directory):
    """An average of each method and option; the first is swapped in."""
    steps = KINDS[kind].get("steps", 24)
    swapped = EMA(0.9, name="swapped")
    others = []
    if "measured" in KINDS[kind]:
        swapped = SWA(1, batch_norm_data=models.data(6)[0], name="swapped")
        # Members are written in the first, the second and the last epoch.
        others.append(
            FGE(8, member_dir=directory / "members", name="fge_files")
        )
    textbook = {"bias_correction": False, "swap": False}
    return [
        swapped,
        EMA(0.9, warmup=True, every_steps=5, include="kernel", **textbook),
        EMA(0.9, start_step=steps - 2, name="late", **textbook),
        SWA(1, every_steps=5, swap=False),
        LAWA(2, every_epochs=2, swap=False),
        SWAG(rank=2, swap=False),
        FGE(4),
        BEMA(2, start_step=3, swap=False),
        *others,
        # Last in this list and by name: a backup that is listed first has the
        # averages sampled in the order of their names.
        SwitchEMA(
            0.9,
            switch_every_steps=4,
            device="cpu",
            warmup=True,
            swap=False,
            name="written_back",
        ),
    ]


class Kill(keras.callbacks.Callback):
    """Kills the process by SIGKILL, in an epoch or outside `fit`."""

    def __init__(self, where=None, epoch=None):
        super().__init__()
        self.at = where, epoch
        self.epoch = None

    def kill(self, where, when=True):
        if (where, self.epoch) == self.at and when:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.kill("mid-epoch", batch == 3)

    def on_test_batch_end(self, batch, logs=None):
        self.kill("validation")


class SlowToSave(keras.layers.Layer):
    """A layer during whose saving the process may be killed."""

    kill = None

    def save_own_variables(self, store):
        store["half"] = numpy.ones(100_000, "float32")
        if self.kill is not None:
            self.kill.kill("writing")

    def load_own_variables(self, store):
        pass

    def call(self, inputs):
        return inputs


def save_through_faults(ema, slow, directory):
    """Save, save to a full disk, and be killed while saving again."""
    path = directory / "a.weights.h5"
    ema.save_weights(path)
    saved, before = path.read_bytes(), {*directory.iterdir()}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        ema.save_weights(path)
    except OSError:
        pass
    else:
        raise AssertionError
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == saved
    assert {*directory.iterdir()} == before
    slow.kill = Kill("writing")
    ema.save_weights(path)


class Interrupt(keras.callbacks.Callback):
    """Interrupts `fit` after a batch, as Ctrl-C does."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def build(kind):
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    slow = SlowToSave()
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            slow,
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.SGD(
        0.01,
        momentum=0.9,
        gradient_accumulation_steps=KINDS[kind].get("accumulate"),
    )
    if "scale" in KINDS[kind]:
        # Some steps overflow and are skipped, which only the device knows.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**126, dynamic_growth_steps=4
        )
    model.compile(optimizer, "mse")
    return model, slow


def main(run):
    directory = Path(run["directory"])
    directory.mkdir(exist_ok=True)
    model, slow = build(run["kind"])
    emas = averages(run["kind"], directory)
    log = keras.callbacks.CSVLogger(directory / "log.csv", append=True)
    callbacks = [*emas, log]
    if "backup" in run:
        backup = keras.callbacks.BackupAndRestore(
            directory / "backup",
            save_freq=run["backup"],
            double_checkpoint=True,
        )
        callbacks.insert(0 if run["backup_first"] else len(callbacks), backup)
    slow.kill = Kill(*run.get("kill", ()))
    callbacks.append(slow.kill)

    def fit(*more, **epochs):
        x, y = models.data(6)
        model.fit(
            x,
            y,
            epochs=EPOCHS,
            batch_size=models.BATCH,
            shuffle=False,
            validation_data=models.data(3, seed=1),
            callbacks=[*callbacks, *more],
            verbose=0,
            **epochs,
        )

    start = 0
    for epoch, batch in run.get("interrupts", ()):
        with contextlib.suppress(KeyboardInterrupt):
            fit(Interrupt(epoch, batch), initial_epoch=start)
        start = epoch
    fit(initial_epoch=start)

    arrays = ends(model, emas)
    scores = (directory / "log.csv").read_text().split()[1:]
    arrays["scores"] = numpy.array(scores)
    arrays["best"] = min(float(line.split(",")[-1]) for line in scores)
    numpy.savez(directory / "end.npz", **arrays)
    if run.get("save"):
        save_through_faults(emas[0], slow, directory)


def ends(model, emas):
    """Final arrays of the model, the optimizer and the averages."""
    arrays = {f"shown_{i}": w for i, w in enumerate(model.get_weights())}
    emas[0].restore()
    arrays |= {f"raw_{i}": w for i, w in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        arrays[f"optimizer_{i}"] = keras.ops.convert_to_numpy(variable.value)
    for ema in emas:
        arrays[f"{ema.name}_counts"] = numpy.array(probe.counts(ema)[3:])
        for i, average in enumerate(ema.get_weights()):
            arrays[f"{ema.name}_{i}"] = average
        for name, kept in probe.kept(ema).items():
            for i, array in enumerate(kept):
                arrays[f"{ema.name}_{name}_{i}"] = array
        for member in range(getattr(ema, "members", 0)):
            with ema.member(member):
                for i, array in enumerate(model.get_weights()):
                    arrays[f"{ema.name}_member_{member}_{i}"] = array
    return arrays


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        main(each)
