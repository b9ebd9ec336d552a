"""A training run, as a process of its own, that may be killed and resumed.

    python resumable.py '{"folder": "...", "die": "validation", ...}'

Where it is to die it sends itself SIGKILL, and nothing of it runs after that.
"""

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


def options(steps):
    """Each option of `EMA`, for a run of so many optimizer steps."""
    return {
        "swapped": {},
        "textbook": {"bias_correction": False},
        "warmup": {"warmup": True},
        "textbook_warmup": {"warmup": True, "bias_correction": False},
        "every": {"every": 5},
        "textbook_every": {"every": 5, "bias_correction": False},
        "start": {"start": steps // 3},
        "late": {"start": steps - 2, "bias_correction": False},
        "include": {"include": "kernel"},
        "host": {"device": "cpu", "every": 3},
    }


def averages(run, folder):
    """An average of each kind and option; the first is swapped in."""
    emas = [
        EMA(0.9, swap=name == "swapped", name=name, **chosen)
        for name, chosen in options(run.get("steps", 24)).items()
    ]
    if run.get("swa"):
        inputs = models.data(6)[0]
        emas[0] = SWA(start_epoch=1, bn_data=inputs, name="swapped")
    if run.get("members"):
        emas.append(FGE(4, folder=folder / "members", name="fge_files"))
    return [
        *emas,
        EMA(0.9, overwrite_every=7, swap=False, name="written_back"),
        SWA(1, swap=False),
        SWA(1, every_steps=5, swap=False, name="swa_steps"),
        LAWA(2, every=2, swap=False),
        SWAG(rank=2, swap=False),
        FGE(4),
        BEMA(5, swap=False),
        BEMA(2, start=3, swap=False, name="bema_late"),
    ]


class Die(keras.callbacks.Callback):
    """Dies by SIGKILL in the second epoch."""

    def __init__(self, where):
        super().__init__()
        self.where = where
        self.epoch = 0

    def die(self, where, when=True):
        if where == self.where and self.epoch == 2 and when:
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
    saved = path.read_bytes()
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
    assert {p.name for p in folder.iterdir()} == {"a.weights.h5", "log.csv"}
    slow.die = Die("writing")
    slow.die.epoch = 2
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


def build(run):
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
    optimizer = keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=run.get("accumulate")
    )
    if run.get("scale"):
        # Overflows now and then: steps are skipped, and only the device knows.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**126, dynamic_growth_steps=4
        )
    model.compile(optimizer, "mse")
    return model, slow


def main(run):
    folder = Path(run["folder"])
    model, slow = build(run)
    emas = averages(run, folder)
    log = keras.callbacks.CSVLogger(folder / "log.csv", append=True)
    callbacks = [*emas, log]
    if "backup" in run:
        backup = keras.callbacks.BackupAndRestore(
            folder / "backup",
            save_freq=run["backup"],
            double_checkpoint=True,
        )
        callbacks.insert(0 if run["backup_first"] else len(callbacks), backup)
    slow.die = Die(run.get("die"))
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

    if "interrupt" in run:
        try:
            fit(Interrupt(*run["interrupt"]))
        except KeyboardInterrupt:
            fit(initial_epoch=run["interrupt"][0])
    else:
        fit()

    if run.get("save"):
        save_through_faults(emas[0], slow, folder)

    arrays = ends(model, emas)
    scores = (folder / "log.csv").read_text().split()[1:]
    arrays["scores"] = numpy.array(scores)
    arrays["best"] = min(float(line.split(",")[-1]) for line in scores)
    numpy.savez(folder / "end.npz", **arrays)


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
        if isinstance(ema, FGE):
            x = models.data(1)[0]
            arrays[f"{ema.name}_predicts"] = ema.predict(x, verbose=0)
    return arrays


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
