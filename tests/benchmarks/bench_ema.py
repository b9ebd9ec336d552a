"""What an exponential moving average costs, beside the other ways to have one.

    KERAS_BACKEND=jax python tests/benchmarks/bench_ema.py

Two tables. *One update*: 36 million float32 weights in 166 variables, against
one flat fused `average += c * (weights - average)` of the same bytes and
against the backend's own tool. *In `fit`*: the time of a training step without
an average, with ours, with a Python loop of assigns in a callback, and with the
optimizer's `use_ema=True`.

All rows of a table are timed in turn, round by round, so that a machine that
slows down slows all of them down; medians are printed.
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

from keras_wavg import EMA
from keras_wavg.callbacks.callback_list import calling_list, move_forward
from keras_wavg.clock import Reading
from keras_wavg.shadow import Shadow

DECAY = 0.999


def main() -> None:
    """Print both tables."""
    print(
        f"keras {keras.__version__}, {keras.config.backend()}, "
        f"{os.cpu_count()} cores, on {sys.platform}"
    )
    bench_update()
    wide, tiny = (2048, 6), (32, 80)
    bench_fit("22 M parameters, 6 x Dense(2048)", *wide, steps=20, rounds=5)
    bench_fit("162 small variables, 80 x Dense(32)", *tiny, steps=100, rounds=7)


def bench_update(rounds: int = 21) -> None:
    """One update of 36 M parameters in 166 variables."""
    model = WeightsOnly(variables=166, parameters=36_000_000)
    shadow = Shadow(model, EMA(DECAY)._plan)
    steps = iter(range(1, 10_000))
    rows = {
        "flat fused lerp": flat_lerp(36_000_000, DECAY),
        "keras_wavg": ours(shadow, steps),
        **peer_update([v.value for v in model.weights], DECAY),
    }
    report("one update, 36 M float32 in 166 variables", rows, rounds)


def ours(shadow: Shadow, steps: Any) -> Callable[[], None]:
    """An update that waits for the device, as the others do."""

    def update() -> None:
        shadow.update(Reading(next(steps)))
        _ = shadow.averages.counters

    return update


def bench_fit(
    title: str, units: int, layers: int, *, steps: int, rounds: int
) -> None:
    """A step of `fit`, with each way to have an average."""
    variants: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
        "fit": (list, {}),
        "fit + EMA": (lambda: [EMA(DECAY)], {}),
        "fit + EMA(every=10)": (lambda: [EMA(DECAY, every=10)], {}),
        "fit + loop of assigns": (lambda: [LoopOfAssigns()], {}),
        "fit, use_ema=True": (list, {"use_ema": True, "ema_momentum": DECAY}),
    }
    x, y = random(32 * steps, units), random(32 * steps, units)
    rows = {}
    for name, (callbacks, options) in variants.items():
        model = dense_model(units, layers, options)
        rows[name] = epoch(model, callbacks(), x, y, steps)
    report(f"a step of fit, {title}", rows, rounds, own_clock=True)


def random(rows: int, columns: int) -> numpy.ndarray:
    """Inputs and targets, whatever they mean."""
    rng = numpy.random.default_rng(0)
    return rng.normal(size=(rows, columns)).astype("float32")


def epoch(
    model: keras.Model, callbacks: list[Any], x: Any, y: Any, steps: int
) -> Callable[[], float]:
    """A function that trains for an epoch and returns the seconds a step."""

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
    """Undo what makes a second `fit` crash with `use_ema=True` on JAX.

    At the end of `fit` the optimizer gives the model its own buffers.
    """
    if model.optimizer.use_ema and keras.config.backend() == "jax":
        for variable in model.trainable_variables:
            variable.assign(keras.ops.copy(variable.value))


def dense_model(
    units: int, layers: int, options: dict[str, Any]
) -> keras.Model:
    """A stack of Dense layers, compiled with Adam."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((units,))]
        + [keras.layers.Dense(units, activation="tanh") for _ in range(layers)]
        + ([keras.layers.Dense(units)] if layers > 10 else [])
    )
    model.compile(keras.optimizers.Adam(1e-4, **options), "mse")
    return model


class WeightsOnly(keras.Model):
    """A model that is nothing but weights."""

    def __init__(self, variables: int, parameters: int) -> None:
        super().__init__()
        for index in range(variables):
            self.add_weight(
                shape=(parameters // variables,),
                initializer="random_normal",
                name=f"weight_{index}",
            )


class LoopOfAssigns(keras.callbacks.Callback):
    """What one writes first: a shadow variable each, assigned in a loop."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Make the shadows."""
        self.shadows = [
            keras.Variable(keras.ops.copy(v.value), trainable=False)
            for v in self.model.weights
        ]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Move them."""
        for shadow, variable in zip(
            self.shadows, self.model.weights, strict=True
        ):
            value = keras.ops.stop_gradient(variable.value)
            shadow.assign(shadow * DECAY + value * (1 - DECAY))


class EpochClock(keras.callbacks.Callback):
    """Times the steps of an epoch, without the swaps at its ends.

    It has no batch hook: that would change how Keras dispatches.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start, when averages have had their turn, and be before them next."""
        move_forward(self, calling_list(self).callbacks)
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._began


def report(
    title: str,
    rows: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    own_clock: bool = False,
) -> None:
    """Time the rows in turn and print medians, and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 2):
        for name, run in rows.items():
            began = time.perf_counter()
            result = run()
            spent = time.perf_counter() - began
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
