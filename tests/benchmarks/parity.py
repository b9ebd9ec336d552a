"""What averages of weights do, library by library: each cell is a check.

    KERAS_BACKEND=jax python tests/benchmarks/parity.py

*Yes*: the check ran, and the number is the right one. *A number*: what came
out, and in brackets what is right. *No*: the library has nothing of the kind.
*-*: it is not installed. *An error's name*: the check ended so.

Each library is used as its documentation says, with what it has for the case:
warm-up of the decay against the weight of the start, float32 averages of
bfloat16 weights. Where the average is a second module, raw weights are never
touched, and `torch`, timm and optax are called after each optimizer step by the
loop of the check.
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
    ("keras_wavg", "parity_ours", "Ours", "keras-wavg"),
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
        sentence: String.
        measure: Function of a library that returns a number, or several.
        right: Float, or tuple of them, the number that is right.
        tolerance: Float, how far from it is right too.
        at_most: Boolean, whether less is right as well.
    """

    sentence: str
    measure: Callable[[Any], Any]
    right: Any = 0.0
    tolerance: float = 0.0
    at_most: bool = False

    def cell(self, library: Any) -> str:
        """What the check says of a library."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                received = self.measure(library)
        except _NoSuchThing:
            return "no"
        except Exception as error:  # noqa: BLE001
            return type(error).__name__
        if self.passes(received):
            return "yes"
        return f"{_numbers(received)} ({_numbers(self.right)})"

    def passes(self, received: Any) -> bool:
        """Whether a number is right."""
        excess = numpy.subtract(received, self.right)
        if not self.at_most:
            excess = numpy.abs(excess)
        return bool(numpy.all(excess <= self.tolerance))


class _NoSuchThing(Exception):  # noqa: N818
    """A library has no such method."""


def ask(name: str, *arguments: Any) -> Callable[[Any], Any]:
    """A method of a library, if it has it."""

    def measure(library: Any) -> Any:
        method = getattr(library, name, None)
        if method is None:
            raise _NoSuchThing
        return method(*arguments)

    return measure


DECAY_50 = (1 - 0.999) * 0.999**49 / (1 - 0.999**50)
CHECKS = [
    Check(
        "the average of 50 steps is that of its definition (relative error)",
        ask("error_of_fifty_steps"),
        tolerance=1e-6,
    ),
    Check(
        "the start need not outweigh later steps (share of the weights before "
        "training and of step 1 after 50 steps, decay 0.999)",
        ask("share_of_the_start"),
        right=DECAY_50,
        tolerance=1e-6,
        at_most=True,
    ),
    Check(
        "bfloat16 weights are averaged (5000 steps at 2.0 after 1.0, decay "
        "0.999)",
        ask("bfloat16"),
        right=2 - 0.999**5000,
        tolerance=0.01,
    ),
    Check(
        "elements that are NaN are left out (average of ones)",
        ask("step_that_is_not_finite"),
        right=1.0,
        tolerance=1e-6,
    ),
    Check(
        "updates every 10 steps keep the horizon (share of the start after "
        "1000 steps, decay 0.999)",
        ask("share_left_by_updates_every_ten_steps"),
        right=0.999**1000,
        tolerance=0.01,
    ),
    Check(
        "power-function averages, updates every 10 steps (mean age, width)",
        ask("power_function_every_ten_steps"),
        right=(0.1119, 0.1),
        tolerance=0.01,
    ),
    Check(
        "several averages in one run with validation (relative error)",
        ask("several_averages"),
        tolerance=1e-6,
    ),
    Check(
        "gradients of 4 batches accumulated: the average moves once (moves in "
        "8 batches)",
        ask("moves_with_accumulation"),
        right=2,
    ),
    Check(
        "raw weights are the same after `evaluate`, 1e-6 beside an average of "
        "1e3 (relative change)",
        ask("raw_weights_after_evaluate"),
    ),
    Check(
        "raw weights are the same after `predict` (relative change)",
        ask("raw_weights_after_predict"),
    ),
    Check(
        "raw weights can be had after `fit`, without a file (relative change)",
        ask("raw_weights_after_fit"),
    ),
    Check(
        "training goes on from raw weights after an exception in validation "
        "(relative change)",
        ask("raw_weights_after_an_exception"),
    ),
    Check(
        "the file of the best epoch scores what was logged (relative change)",
        ask("best_file", False),
        tolerance=1e-5,
    ),
    Check(
        "the same, with `ModelCheckpoint` listed before the average",
        ask("best_file", True),
        tolerance=1e-5,
    ),
    Check(
        "an early stop ends on the weights that were validated (relative "
        "change of their score)",
        ask("early_stop"),
        tolerance=1e-5,
    ),
    Check(
        "raw and averaged scores in one history (relative error)",
        ask("scores_in_one_history"),
        tolerance=1e-5,
    ),
    Check(
        "resuming from a file gives the same numbers as not stopping "
        "(relative change)",
        ask("resume"),
    ),
    Check(
        "statistics of BatchNormalization measured anew, batches differ "
        "(population variance)",
        ask("variance_of_batch_normalization", BATCHES),
        right=round(float(numpy.var(BATCHES)), 4),
        tolerance=1e-3,
    ),
    Check(
        "the average tells its mean age (error, by all steps)",
        ask("mean_age_that_is_told"),
        tolerance=1e-5,
    ),
    Check(
        "any length after training, from snapshots (mean age, width)",
        ask("synthesis", 1),
        right=(0.1799, 0.15),
        tolerance=0.01,
    ),
    Check(
        "the same, of averages with updates every 10 steps",
        ask("synthesis", 10),
        right=(0.1799, 0.15),
        tolerance=0.01,
    ),
    Check(
        "saved files averaged in float64, in any order (wrong numbers)",
        ask("averaged_files"),
    ),
]


NOTES = """\
torch, timm, ema-pytorch: the average is a second module, and evaluation leaves
that of training alone; optax: functions of arrays. What `fit` does is the
caller's loop there. timm averages files by a script of its repository, which is
not in its package."""


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
    """A library, or `None` if it is not installed."""
    try:
        return getattr(importlib.import_module(module), name)()
    except ImportError:
        return None


def versions(libraries: dict[str, Any]) -> str:
    """Of what is installed."""
    return ", ".join(
        f"{column} {importlib.metadata.version(distribution)}"
        for column, _, _, distribution in LIBRARIES[1:]
        if libraries[column] is not None
    )


def _numbers(values: Any) -> str:
    return " / ".join(f"{float(value):.4g}" for value in numpy.ravel(values))


if __name__ == "__main__":
    main()
