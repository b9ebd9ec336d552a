"""Benchmark of an exponential moving average against alternatives.

    KERAS_BACKEND=jax python tests/benchmarks/bench_ema.py

Prints tables:

- One update of 36 million float32 weights in 166 variables, against one fused
  `average += c * (weights - average)` on a flat array of the same size, and
  against the tool of the backend.
- One update of `PowerEMA` with one, two and four widths.
- A step of `fit` without an average, with `EMA`, with a Python loop of
  assignments in a callback, and with `use_ema=True` in the optimizer.

The rows of a table are timed in turn, round by round, so that a slow phase of
the machine affects all rows. The tables show medians.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras
import numpy
from peers import flat_lerp, peer_update

from keras_wavg import EMA, PowerEMA
from keras_wavg.averaged_weights import AveragedWeights
from keras_wavg.callbacks.callback_list import calling_list, move_forward
from keras_wavg.clock import UpdateTime

DECAY = 0.999


def main() -> None:
    """Print the tables."""
    print(
        f"keras {keras.__version__}, {keras.config.backend()}, "
        f"{os.cpu_count()} cores, on {sys.platform}"
    )
    bench_update()
    bench_widths("36 M float32 in 166 variables", 166, 216_896)
    bench_widths("162 variables of 1,024 elements", 162, 1024)
    wide, tiny = (2048, 6), (32, 80)
    bench_fit("22 M parameters, 6 x Dense(2048)", *wide, steps=20, rounds=5)
    bench_fit("162 small variables, 80 x Dense(32)", *tiny, steps=100, rounds=7)


def bench_update(rounds: int = 21) -> None:
    """Time one update of 36 M parameters in 166 variables."""
    # XLA takes twice as long if sizes are not divisible by 4, which is rare.
    parameters = 166 * 216_896
    model = WeightsOnly(variables=166, parameters=parameters)
    averaged = AveragedWeights(model, EMA(DECAY)._plan)
    steps = iter(range(1, 10_000))
    rows = {
        "flat fused lerp": flat_lerp(parameters, DECAY),
        "keras_wavg": device_update(averaged, steps),
        **peer_update([v.value for v in model.weights], DECAY),
    }
    report("one update, 36 M float32 in 166 variables", rows, rounds)


def bench_widths(
    title: str, variables: int, elements: int, rounds: int = 21
) -> None:
    """Time one update of `PowerEMA` with one, two and four widths."""
    model = WeightsOnly(variables, variables * elements)
    rows = {}
    for widths in ((0.05,), (0.05, 0.1), (0.05, 0.1, 0.15, 0.2)):
        averaged = AveragedWeights(model, PowerEMA(widths)._plan)
        steps = iter(range(1, 10_000))
        rows[f"widths {widths}"] = device_update(averaged, steps)
    report(f"one update of PowerEMA, {title}", rows, rounds)


def device_update(averaged: AveragedWeights, steps: Any) -> Callable[[], None]:
    """Return an update that waits for the device, as the others do."""

    def update() -> None:
        averaged.update(UpdateTime(next(steps)))
        _ = averaged.averages.counters

    return update


def bench_fit(
    title: str, units: int, layers: int, *, steps: int, rounds: int
) -> None:
    """Time a step of `fit` with each kind of average."""
    variants: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
        "fit": (list, {}),
        "fit + EMA": (lambda: [EMA(DECAY)], {}),
        "fit + EMA(every_steps=10)": (lambda: [EMA(DECAY, every_steps=10)], {}),
        "fit + loop of assignments": (lambda: [LoopOfAssigns()], {}),
        "fit, use_ema=True": (list, {"use_ema": True, "ema_momentum": DECAY}),
    }
    x, y = random(32 * steps, units), random(32 * steps, units)
    rows = {}
    for name, (callbacks, options) in variants.items():
        model = dense_model(units, layers, options)
        rows[name] = epoch(model, callbacks(), x, y, steps)
    report(f"a step of fit, {title}", rows, rounds, own_clock=True)


def random(rows: int, columns: int) -> numpy.ndarray:
    """Return random inputs or targets."""
    rng = numpy.random.default_rng(0)
    return rng.normal(size=(rows, columns)).astype("float32")


def epoch(
    model: keras.Model, callbacks: list[Any], x: Any, y: Any, steps: int
) -> Callable[[], float]:
    """Return a function that trains an epoch and returns seconds per step."""

    def run() -> float:
        clock = EpochClock()
        keep_training(model)
        model.fit(
            x,
            y,
            batch_size=32,
            verbose=0,
            shuffle=False,
            callbacks=[clock, *callbacks],
        )
        return clock.seconds / steps

    return run


def keep_training(model: keras.Model) -> None:
    """Prevent the crash of a second `fit` with `use_ema=True` on JAX.

    At the end of `fit`, the optimizer puts its own buffers into the model.
    """
    if model.optimizer.use_ema and keras.config.backend() == "jax":
        for variable in model.trainable_variables:
            variable.assign(keras.ops.copy(variable.value))


def dense_model(
    units: int, layers: int, options: dict[str, Any]
) -> keras.Model:
    """Return a stack of Dense layers, compiled with Adam."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((units,))]
        + [keras.layers.Dense(units, activation="tanh") for _ in range(layers)]
        + ([keras.layers.Dense(units)] if layers > 10 else [])
    )
    model.compile(keras.optimizers.Adam(1e-4, **options), "mse")
    return model


class WeightsOnly(keras.Model):
    """A model that has weights and no layers."""

    def __init__(self, variables: int, parameters: int) -> None:
        super().__init__()
        for index in range(variables):
            self.add_weight(
                shape=(parameters // variables,),
                initializer="random_normal",
                name=f"weight_{index}",
            )


class LoopOfAssigns(keras.callbacks.Callback):
    """The simplest implementation: one `assign` for each variable."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Create the averages."""
        self.averages = [
            keras.Variable(keras.ops.copy(v.value), trainable=False)
            for v in self.model.weights
        ]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the averages."""
        for average, variable in zip(
            self.averages, self.model.weights, strict=True
        ):
            value = keras.ops.stop_gradient(variable.value)
            average.assign(average * DECAY + value * (1 - DECAY))


class EpochClock(keras.callbacks.Callback):
    """Times the steps of an epoch, without the swaps before and after them.

    It has no batch hook, because that changes how Keras dispatches steps.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start after the averages, and move before them for the epoch end."""
        move_forward(self, calling_list(self).callbacks)
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._start


def report(
    title: str,
    rows: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    own_clock: bool = False,
) -> None:
    """Time the rows in turn; print medians and ratios to the first row."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 2):
        for name, run in rows.items():
            start = time.perf_counter()
            result = run()
            spent = time.perf_counter() - start
            if turn > 1:
                seconds[name].append(result if own_clock else spent)
    first = next(iter(seconds))
    print(
        f"\n{title}\n{'':28}{'median ms':>10}{'ratio':>8}{'min - max ms':>20}"
    )
    for name, times in seconds.items():
        ratio = statistics.median(
            t / base for t, base in zip(times, seconds[first], strict=True)
        )
        span = f"{min(times) * 1e3:.2f} - {max(times) * 1e3:.2f}"
        median = statistics.median(times) * 1e3
        print(f"{name:28}{median:10.2f}{ratio:8.2f}{span:>20}")


if __name__ == "__main__":
    main()
