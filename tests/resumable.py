"""Training runs, in a process that may be killed in the midst of one.

    python resumable.py '[{"folder": "...", "kind": "plain"}, ...]'

Where a run is to die it sends itself SIGKILL, and nothing runs after that.
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

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG

EPOCHS = 4
KINDS = {
    "plain": {},
    "measured": {"measured": True},
    "accumulated": {"accumulate": 4, "steps": 6},
    "scaled": {"scale": True, "steps": 12},
}


def averages(kind, folder):
    """An average of each method and option; the first is swapped in."""
    steps = KINDS[kind].get("steps", 24)
    swapped = EMA(0.9, name="swapped")
    others = []
    if "measured" in KINDS[kind]:
        swapped = SWA(1, bn_data=models.data(6)[0], name="swapped")
        # Members are written in the first, the second and the last epoch.
        others.append(FGE(8, folder=folder / "members", name="fge_files"))
    textbook = {"bias_correction": False, "swap": False}
    return [
        swapped,
        EMA(0.9, warmup=True, every=5, include="kernel", **textbook),
        EMA(0.9, start=steps - 2, name="late", **textbook),
        SWA(1, every_steps=5, swap=False),
        LAWA(2, every=2, swap=False),
        SWAG(rank=2, swap=False),
        FGE(4),
        BEMA(2, start=3, swap=False),
        *others,
        # Last in this list and in the order of names: a backup that is listed
        # first asks the averages for a sample in the order of their names.
        EMA(
            0.9,
            device="cpu",
            warmup=True,
            every=3,
            start=steps // 3 - 1,
            overwrite_every=4,
            swap=False,
            name="written_back",
        ),
    ]


class Die(keras.callbacks.Callback):
    """Dies by SIGKILL in an epoch, or outside `fit`."""

    def __init__(self, where=None, epoch=None):
        super().__init__()
        self.at = where, epoch
        self.epoch = None

    def die(self, where, when=True):
        if (where, self.epoch) == self.at and when:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.die("mid-epoch", batch == 3)

    def on_test_batch_end(self, batch, logs=None):
        self.die("validation")


class SlowToSave(keras.layers.Layer):
    """A layer in the midst of whose saving the process is killed."""

    die = None

    def save_own_variables(self, store):
        store["half"] = numpy.ones(100_000, "float32")
        if self.die is not None:
            self.die.die("writing")

    def load_own_variables(self, store):
        pass

    def call(self, inputs):
        return inputs


def save_through_faults(ema, slow, folder):
    """Save, save on a full disk, and be killed while saving once more."""
    path = folder / "a.weights.h5"
    ema.save_weights(path)
    saved, before = path.read_bytes(), {*folder.iterdir()}
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
    assert {*folder.iterdir()} == before
    slow.die = Die("writing")
    ema.save_weights(path)


class Interrupt(keras.callbacks.Callback):
    """Leaves `fit` behind a batch, as Ctrl-C does."""

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
        # Overflows now and then: steps are skipped, and only the device knows.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**126, dynamic_growth_steps=4
        )
    model.compile(optimizer, "mse")
    return model, slow


def main(run):
    folder = Path(run["folder"])
    folder.mkdir(exist_ok=True)
    model, slow = build(run["kind"])
    emas = averages(run["kind"], folder)
    log = keras.callbacks.CSVLogger(folder / "log.csv", append=True)
    callbacks = [*emas, log]
    if "backup" in run:
        backup = keras.callbacks.BackupAndRestore(
            folder / "backup",
            save_freq=run["backup"],
            double_checkpoint=True,
        )
        callbacks.insert(0 if run["backup_first"] else len(callbacks), backup)
    slow.die = Die(*run.get("die", ()))
    callbacks.append(slow.die)

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

    begin = 0
    for epoch, batch in run.get("interrupts", ()):
        with contextlib.suppress(KeyboardInterrupt):
            fit(Interrupt(epoch, batch), initial_epoch=begin)
        begin = epoch
    fit(initial_epoch=begin)

    arrays = ends(model, emas)
    scores = (folder / "log.csv").read_text().split()[1:]
    arrays["scores"] = numpy.array(scores)
    arrays["best"] = min(float(line.split(",")[-1]) for line in scores)
    numpy.savez(folder / "end.npz", **arrays)
    if run.get("save"):
        save_through_faults(emas[0], slow, folder)


def ends(model, emas):
    """All that training has left in the model, the optimizer, the averages."""
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
