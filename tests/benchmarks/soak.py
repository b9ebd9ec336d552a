"""Hours of training in minutes: is the memory flat, are the numbers right?

    KERAS_BACKEND=jax python tests/benchmarks/soak.py [STEPS]

One weight goes straight from 0 to 1 in STEPS optimizer steps (200,000), so that
each average of it is known without a look at the training. Meanwhile, at random
but always the same: validations, predictions, swaps by hand, ends of `fit` and
beginnings of another one, saved files that are gone on from in the same model
and in a fresh one. At the end each average must be that of its definition.
"""

import gc
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy
from models import clock

from keras_wavg import EMA, LAWA, SWA, PowerEMA
from keras_wavg.profile import exponent_from_sigma_rel

STEPS_PER_EPOCH, WIDTH = 250, 0.1
LIMIT = 1e-6
"""Of what an average may differ. A step too many or too few is 5e-6."""


def averages() -> dict[str, Any]:
    """One in the model, the others riding along."""
    return {
        "EMA(0.999)": EMA(0.999),
        "EMA(0.99, every=7)": EMA(0.99, every=7, swap=False, name="seventh"),
        "PowerEMA(0.1)": PowerEMA((WIDTH, 0.2), swap=False),
        "SWA": SWA(swap=False),
        "LAWA(5)": LAWA(5, swap=False),
    }


def defined(steps: int) -> dict[str, float]:
    """What each average is by its definition."""
    rate = numpy.float32(1 / steps)
    weights = numpy.cumsum(numpy.full(steps, rate), dtype="float32")
    ends = weights[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH].astype("float64")
    gamma = exponent_from_sigma_rel(WIDTH)
    return {
        "EMA(0.999)": moved(weights, lambda n: 0.001 / (1 - 0.999**n)),
        "EMA(0.99, every=7)": moved(
            weights[6::7],
            lambda n: (1 - 0.99**7) / (1 - 0.99 ** (7 * n)),
        ),
        "PowerEMA(0.1)": moved(
            weights, lambda t: 1 - (1 - 1 / t) ** (gamma + 1)
        ),
        "SWA": ends.mean(),
        "LAWA(5)": ends[-5:].mean(),
    }


def moved(weights: Any, coefficient: Callable[[int], float]) -> float:
    """An average that is rounded to float32 at each step, as ours are.

    On weights that go straight on, these roundings add up. They are not what
    is to be seen here.
    """
    average = numpy.float32(0)
    for count, weight in enumerate(weights, 1):
        average += numpy.float32(coefficient(count)) * (weight - average)
    return float(average)


class Soak:
    """A training and what happens to it.

    Args:
        steps: Integer, the optimizer steps, a multiple of those of an epoch.
        folder: Where files are saved.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self.steps = steps
        self.path = folder / "all.weights.h5"
        self.random = random.Random(0)  # noqa: S311
        self.x = numpy.zeros((STEPS_PER_EPOCH, 1), "float32")
        self.begin()

    def begin(self) -> None:
        """A model with averages, all at their beginning."""
        self.model, self.averages = clock(self.steps), averages()
        for average in self.averages.values():
            average.set_model(self.model)

    def run(self) -> None:
        """Train, and let something happen after each `fit`."""
        epoch, epochs, began = 0, self.steps // STEPS_PER_EPOCH, time.time()
        events = [self.predict, self.swap, self.save, self.load, self.nothing]
        while epoch < epochs:
            until = min(epoch + self.random.randint(1, 8), epochs)
            self.fit(epoch, until)
            self.random.choice(events)()
            if self.random.random() < 10 / epochs:
                self.move()
            if until * 10 // epochs > epoch * 10 // epochs:
                print_progress(until / epochs, began)
            epoch = until

    def fit(self, epoch: int, until: int) -> None:
        """Epochs with validation."""
        self.model.fit(
            self.x,
            batch_size=1,
            initial_epoch=epoch,
            epochs=until,
            verbose=0,
            validation_data=(self.x[:2], None),
            callbacks=self.random.sample(
                list(self.averages.values()), len(self.averages)
            ),
        )

    def predict(self) -> None:
        """With an average of its own in the model."""
        self.model.predict(
            self.x[:2], verbose=0, callbacks=[self.averages["SWA"]]
        )

    def swap(self) -> None:
        """By hand."""
        self.averages["EMA(0.999)"].restore()
        with self.averages["LAWA(5)"].applied():
            self.model.evaluate(self.x[:2], verbose=0)

    def save(self) -> None:
        """All that there is, and an average alone."""
        self.model.save_weights(self.path)
        average = self.random.choice(list(self.averages.values()))
        average.save_weights(self.path.with_name("one.weights.h5"))

    def load(self) -> None:
        """Go on from a file in the same model."""
        self.save()
        self.model.load_weights(self.path)

    def move(self) -> None:
        """Go on from a file in a fresh model."""
        self.save()
        keras.utils.clear_session()
        self.begin()
        self.model.load_weights(self.path)
        gc.collect()

    def nothing(self) -> None:
        """The next `fit` follows at once."""

    def errors(self) -> dict[str, float]:
        """How far each average is from its definition."""
        return {
            name: abs(float(self.averages[name].get_weights()[0]) - expected)
            for name, expected in defined(self.steps).items()
        }


def print_progress(share: float, began: float) -> None:
    """The highest memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{share:4.0%}  {time.time() - began:6.0f} s  {peak:7.1f} MiB")


def main() -> None:
    """Soak, and compare."""
    steps = int([*sys.argv, "200000"][1])
    print(f"keras {keras.__version__}, {keras.config.backend()}, {steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(steps, Path(folder))
        soak.run()
    errors = soak.errors()
    for name, error in errors.items():
        print(f"{name:20} differs from its definition by {error:.1e}")
    sys.exit(int(max(errors.values()) > LIMIT))


if __name__ == "__main__":
    main()
