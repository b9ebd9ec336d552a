"""Soak test: is memory constant and are averages exact in a long training?

    KERAS_BACKEND=jax python tests/benchmarks/soak.py [STEPS]

One weight moves linearly from 0 to 1 in STEPS optimizer steps (200,000), so the
definition of each average can be computed without the training. In between, in
a random but fixed order: validation, prediction, swaps by hand, the end of a
`fit` and the start of the next, saved files, and resuming from them in the same
and in a new model. At the end each average must equal its definition.
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
"""Accepted error of an average. One step more or less changes it by 5e-6."""


def averages() -> dict[str, Any]:
    """Return new averages; the first is swapped into the model."""
    return {
        "EMA(0.999)": EMA(0.999),
        "EMA(0.99, every_steps=7)": EMA(
            0.99, every_steps=7, swap=False, name="seventh"
        ),
        "PowerEMA(0.1)": PowerEMA((WIDTH, 0.2), swap=False),
        "SWA": SWA(swap=False),
        "LAWA(5)": LAWA(5, swap=False),
    }


def defined(steps: int) -> dict[str, float]:
    """Return each average as defined."""
    rate = numpy.float32(1 / steps)
    weights = numpy.cumsum(numpy.full(steps, rate), dtype="float32")
    ends = weights[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH].astype("float64")
    gamma = exponent_from_sigma_rel(WIDTH)
    return {
        "EMA(0.999)": recursion(weights, lambda n: 0.001 / (1 - 0.999**n)),
        "EMA(0.99, every_steps=7)": recursion(
            weights[6::7],
            lambda n: (1 - 0.99**7) / (1 - 0.99 ** (7 * n)),
        ),
        "PowerEMA(0.1)": recursion(
            weights, lambda t: 1 - (1 - 1 / t) ** (gamma + 1)
        ),
        "SWA": ends.mean(),
        "LAWA(5)": ends[-5:].mean(),
    }


def recursion(weights: Any, coefficient: Callable[[int], float]) -> float:
    """Return an average that is rounded to float32 at each update.

    On weights that move linearly the rounding errors add up, so the definition
    has to include them.
    """
    average = numpy.float32(0)
    for count, weight in enumerate(weights, 1):
        average += numpy.float32(coefficient(count)) * (weight - average)
    return float(average)


class Soak:
    """A long training with random events between the calls of `fit`.

    Args:
        steps: Integer, the number of optimizer steps, a multiple of
            `STEPS_PER_EPOCH`.
        directory: `pathlib.Path`, the directory of the saved files.
    """

    def __init__(self, steps: int, directory: Path) -> None:
        self.steps = steps
        self.path = directory / "all.weights.h5"
        self.random = random.Random(0)  # noqa: S311
        self.x = numpy.zeros((STEPS_PER_EPOCH, 1), "float32")
        self.create()

    def create(self) -> None:
        """Create a model and new averages."""
        self.model, self.averages = clock(self.steps), averages()
        for average in self.averages.values():
            average.set_model(self.model)

    def run(self) -> None:
        """Train, with a random event after each `fit`."""
        epoch, epochs, start = 0, self.steps // STEPS_PER_EPOCH, time.time()
        events = [self.predict, self.swap, self.save, self.load, self.nothing]
        while epoch < epochs:
            until = min(epoch + self.random.randint(1, 8), epochs)
            self.fit(epoch, until)
            self.random.choice(events)()
            if self.random.random() < 10 / epochs:
                self.load_into_new_model()
            if until * 10 // epochs > epoch * 10 // epochs:
                print_progress(until / epochs, start)
            epoch = until

    def fit(self, epoch: int, until: int) -> None:
        """Train epochs with validation."""
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
        """Predict with another average in the model."""
        self.model.predict(
            self.x[:2], verbose=0, callbacks=[self.averages["SWA"]]
        )

    def swap(self) -> None:
        """Swap by hand."""
        self.averages["EMA(0.999)"].restore()
        with self.averages["LAWA(5)"].applied():
            self.model.evaluate(self.x[:2], verbose=0)

    def save(self) -> None:
        """Save the whole state, and one average alone."""
        self.model.save_weights(self.path)
        average = self.random.choice(list(self.averages.values()))
        average.save_weights(self.path.with_name("one.weights.h5"))

    def load(self) -> None:
        """Resume from a file in the same model."""
        self.save()
        self.model.load_weights(self.path)

    def load_into_new_model(self) -> None:
        """Resume from a file in a new model."""
        self.save()
        keras.utils.clear_session()
        self.create()
        self.model.load_weights(self.path)
        gc.collect()

    def nothing(self) -> None:
        """Do nothing before the next `fit`."""

    def errors(self) -> dict[str, float]:
        """Return the error of each average against its definition."""
        return {
            name: abs(float(self.averages[name].get_weights()[0]) - expected)
            for name, expected in defined(self.steps).items()
        }


def print_progress(fraction: float, start: float) -> None:
    """Print the time and the peak memory so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{fraction:4.0%}  {time.time() - start:6.0f} s  {peak:7.1f} MiB")


def main() -> None:
    """Train, and compare the averages with their definitions."""
    steps = int([*sys.argv, "200000"][1])
    print(f"keras {keras.__version__}, {keras.config.backend()}, {steps} steps")
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(steps, Path(directory))
        soak.run()
    errors = soak.errors()
    for name, error in errors.items():
        print(f"{name:20} differs from its definition by {error:.1e}")
    sys.exit(int(max(errors.values()) > LIMIT))


if __name__ == "__main__":
    main()
