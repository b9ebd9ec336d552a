"""Compare averages of weights across libraries: each cell is a check.

    KERAS_BACKEND=jax python tests/benchmarks/parity.py

Cells are:

- yes: the check ran, and its result is correct.
- A number: the result of the check, with the correct result in parentheses.
- no: the library does not have the feature.
- `-`: the library is not installed.
- The name of an error: the check raised it.

Each library is used as its documentation says, with its own features for the
case: warm-up of the decay against the influence of the initial weights, float32
averages of bfloat16 weights. Libraries that keep the average in a second module
never touch the raw weights. For torch, timm and optax, the loop of the check
calls the update after each optimizer step.
"""

import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy

# Column, module, class, distribution.
LIBRARIES = [
    ("keras_wavg", "parity_keras_wavg", "KerasWavg", "keras-wavg"),
    ("Keras", "parity_keras", "Keras", "keras"),
    ("torch", "parity_torch", "Torch", "torch"),
    ("timm", "parity_timm", "Timm", "timm"),
    ("ema-pytorch", "parity_ema_pytorch", "EmaPytorch", "ema-pytorch"),
    ("optax", "parity_optax", "Optax", "optax"),
    ("Lightning", "parity_lightning", "Lightning", "lightning"),
]
BATCHES = [
    numpy.random.default_rng(i).normal(mean, size=(8, 1)).astype("float32")
    for i, mean in enumerate((-4, -1, 1, 4))
]


@dataclass(frozen=True)
class Check:
    """A row of the table.

    Args:
        sentence: String, the label of the row.
        measure: Function that takes a library and returns a number or several.
        right: Float or tuple of floats, the correct result. Defaults to `0.0`.
        tolerance: Float, the accepted difference from `right`. Defaults to
            `0.0`.
        at_most: Boolean, whether smaller results are correct too. Defaults to
            `False`.
    """

    sentence: str
    measure: Callable[[Any], Any]
    right: Any = 0.0
    tolerance: float = 0.0
    at_most: bool = False

    def cell(self, library: Any) -> str:
        """Run the check and return the text of the cell."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                received = self.measure(library)
        except _MissingFeature:
            return "no"
        except Exception as error:  # noqa: BLE001
            return type(error).__name__
        if self.passes(received):
            return "yes"
        return f"{_numbers(received)} ({_numbers(self.right)})"

    def passes(self, received: Any) -> bool:
        """Return whether a result is correct."""
        excess = numpy.subtract(received, self.right)
        if not self.at_most:
            excess = numpy.abs(excess)
        return bool(numpy.all(excess <= self.tolerance))


class _MissingFeature(Exception):  # noqa: N818
    """A library does not have the method of a check."""


def call(name: str, *arguments: Any) -> Callable[[Any], Any]:
    """Return a function that calls a method of a library, if it exists."""

    def measure(library: Any) -> Any:
        method = getattr(library, name, None)
        if method is None:
            raise _MissingFeature
        return method(*arguments)

    return measure


DECAY_50 = (1 - 0.999) * 0.999**49 / (1 - 0.999**50)
CHECKS = [
    Check(
        "the average of 50 steps equals its definition (relative error)",
        call("error_of_fifty_steps"),
        tolerance=1e-6,
    ),
    Check(
        "the initial weights need not dominate (coefficient of the initial "
        "weights and of step 1 after 50 steps, decay 0.999)",
        call("coefficient_of_the_initial_weights"),
        right=DECAY_50,
        tolerance=1e-6,
        at_most=True,
    ),
    Check(
        "bfloat16 weights are averaged (5000 steps at 2.0, initially 1.0, "
        "decay 0.999)",
        call("bfloat16"),
        right=2 - 0.999**5000,
        tolerance=0.01,
    ),
    Check(
        "elements that are NaN are excluded (average of ones)",
        call("step_with_nan"),
        right=1.0,
        tolerance=1e-6,
    ),
    Check(
        "updates every 10 steps keep the length of the average (coefficient of "
        "the initial weights after 1000 steps, decay 0.999)",
        call("coefficient_left_by_updates_every_ten_steps"),
        right=0.999**1000,
        tolerance=0.01,
    ),
    Check(
        "power-function averages, updates every 10 steps (mean age, width)",
        call("power_function_every_ten_steps"),
        right=(0.1119, 0.1),
        tolerance=0.01,
    ),
    Check(
        "several averages in one run with validation (relative error)",
        call("several_averages"),
        tolerance=1e-6,
    ),
    Check(
        "gradients of 4 batches are accumulated: one update (updates in 8 "
        "batches)",
        call("updates_with_accumulation"),
        right=2,
    ),
    Check(
        "raw weights of 1e-6 are unchanged after `evaluate` with an average of "
        "1e3 (relative change)",
        call("raw_weights_after_evaluate"),
    ),
    Check(
        "raw weights are unchanged after `predict` (relative change)",
        call("raw_weights_after_predict"),
    ),
    Check(
        "raw weights are available after `fit`, without a file (relative "
        "change)",
        call("raw_weights_after_fit"),
    ),
    Check(
        "training continues from raw weights after an exception in validation "
        "(relative change)",
        call("raw_weights_after_an_exception"),
    ),
    Check(
        "the checkpoint of the best epoch has the logged score (relative "
        "change)",
        call("best_file", False),
        tolerance=1e-5,
    ),
    Check(
        "the same, with `ModelCheckpoint` listed before the average",
        call("best_file", True),
        tolerance=1e-5,
    ),
    Check(
        "an early stop leaves the validated weights in the model (relative "
        "change of their score)",
        call("early_stop"),
        tolerance=1e-5,
    ),
    Check(
        "scores of raw weights and average in one history (relative error)",
        call("scores_in_one_history"),
        tolerance=1e-5,
    ),
    Check(
        "a resumed run ends with the same weights as an uninterrupted one "
        "(relative change)",
        call("resume"),
    ),
    Check(
        "statistics of BatchNormalization are measured, batches differ "
        "(population variance)",
        call("variance_of_batch_normalization", BATCHES),
        right=round(float(numpy.var(BATCHES)), 4),
        tolerance=1e-3,
    ),
    Check(
        "the average reports its mean age (error, divided by all steps)",
        call("error_of_reported_mean_age"),
        tolerance=1e-5,
    ),
    Check(
        "averages of any length after training, from snapshots (mean age, "
        "width)",
        call("synthesis", 1),
        right=(0.1799, 0.15),
        tolerance=0.01,
    ),
    Check(
        "the same, with updates every 10 steps (mean age, width)",
        call("synthesis", 10),
        right=(0.1799, 0.15),
        tolerance=0.01,
    ),
    Check(
        "saved files are averaged in float64, in any order (wrong elements)",
        call("averaged_files"),
    ),
]


NOTES = """\
With torch, timm and ema-pytorch the average is a second module, so evaluation
does not change the trained one. optax has functions of arrays. There the loop
of the caller does what `fit` does. timm averages files with a script of its
repository, which is not in its package."""


def main() -> None:
    """Print the table."""
    libraries = {column: load(*rest) for column, *rest in LIBRARIES}
    print(
        f"On Keras' backend {keras.config.backend()}; {versions(libraries)}\n"
    )
    print(f"| | {' | '.join(libraries)} |")
    print("|---" * (len(libraries) + 1) + "|")
    for check in CHECKS:
        cells = [
            "-" if library is None else check.cell(library)
            for library in libraries.values()
        ]
        print(f"| {check.sentence} | {' | '.join(cells)} |", flush=True)
    print(f"\n{NOTES}")
    for column, library in libraries.items():
        if library is None:
            print(f"{column} is not installed.")


def load(module: str, name: str, _: str) -> Any:
    """Return a library, or `None` if it is not installed."""
    try:
        return getattr(importlib.import_module(module), name)()
    except ImportError:
        return None


def versions(libraries: dict[str, Any]) -> str:
    """Return the versions of the installed libraries."""
    return ", ".join(
        f"{column} {importlib.metadata.version(distribution)}"
        for column, _, _, distribution in LIBRARIES[1:]
        if libraries[column] is not None
    )


def _numbers(values: Any) -> str:
    return " / ".join(f"{float(value):.4g}" for value in numpy.ravel(values))


if __name__ == "__main__":
    main()
