"""Benchmark of an average on a GPU, in device time, or else on the CPU.

    KERAS_BACKEND=torch python tests/benchmarks/bench_device.py

Prints three results, on JAX and torch:

- Bandwidth: of a copy of 400 MB, read and written.
- One update: its device time, and the fraction of the bandwidth that it reaches
  for four passes over the weights: one to check that they are finite, two to
  read weights and averages, one to write the averages.
- `fit`: a step without an average, with an average on the device, and with an
  average in host memory.
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
from bench_ema import DECAY, WeightsOnly, dense_model, epoch, random, report

from keras_wavg import EMA
from keras_wavg.averaged_weights import AveragedWeights
from keras_wavg.clock import UpdateTime

PASSES = 4
"""Passes over all weights in an update: check, read, read, write."""
COPIED = 100_000_000
"""Number of elements in the copy that measures the bandwidth."""

Timer = Callable[[Callable[[], Any]], float]
"""Measures the seconds that a function takes on the device."""


def main() -> None:
    """Print the three results."""
    device, seconds_of, copy = {"jax": on_jax, "torch": on_torch}[
        keras.config.backend()
    ]()
    print(f"keras {keras.__version__}, {keras.config.backend()}, on {device}")
    if "cpu" in device.lower():
        print("No GPU here: the same script on the CPU, wall clock.")
    bandwidth = 2 * 4 * COPIED / seconds_of(copy)
    print(f"\nbandwidth: {bandwidth / 1e9:.1f} GB/s")
    for parameters in (36_000_000, 100_000_000):
        bench_update(parameters, bandwidth, seconds_of)
    bench_fit()


def bench_update(parameters: int, bandwidth: float, seconds_of: Timer) -> None:
    """Time one update of float32 variables."""
    model = WeightsOnly(variables=166, parameters=parameters)
    averaged = AveragedWeights(model, EMA(DECAY)._plan)
    steps = iter(range(1, 1_000_000))

    def update() -> Any:
        averaged.update(UpdateTime(next(steps)))
        averages = averaged.averages
        return (getattr(averages, "_arrays", None) or averages._averages)[0]

    seconds = seconds_of(update)
    fraction = PASSES * 4 * parameters / seconds / bandwidth
    print(
        f"one update of {parameters / 1e6:.0f} M float32 in 166 variables: "
        f"{seconds * 1e3:.3f} ms, {fraction:.0%} of the bandwidth"
    )


def bench_fit() -> None:
    """Time a step of `fit`, with the average on the device or on the host."""
    units, layers, steps = 2048, 6, 20
    variants: dict[str, Callable[[], list[Any]]] = {
        "fit": list,
        "fit + an empty hook": lambda: [EmptyHook()],
        "fit + EMA": lambda: [EMA(DECAY)],
        "fit + EMA(every_steps=10)": lambda: [EMA(DECAY, every_steps=10)],
        "fit + EMA(10, device=cpu)": lambda: [
            EMA(DECAY, every_steps=10, device="cpu")
        ],
    }
    x, y = random(32 * steps, units), random(32 * steps, units)
    rows = {
        name: epoch(dense_model(units, layers, {}), callbacks(), x, y, steps)
        for name, callbacks in variants.items()
    }
    title = f"a step of fit, {layers} x Dense({units})"
    report(title, rows, rounds=5, own_clock=True)


class EmptyHook(keras.callbacks.Callback):
    """A batch hook that does nothing.

    Any batch hook stops Keras from overlapping steps, which has a cost.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing."""


def on_torch() -> tuple[str, Timer, Callable[[], Any]]:
    """Return the name of the device, a timer, and a copy to be timed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source, target = torch.ones((2, COPIED), device=device)

    def copy() -> Any:
        return target.copy_(source)

    if device == "cpu":
        return "CPU", wall_clock(lambda _: None), copy
    return torch.cuda.get_device_name(), torch_events, copy


def torch_events(work: Callable[[], Any], times: int = 20) -> float:
    """Measure `work` with the events that CUDA records between kernels."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for _ in range(7):
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end) / 1e3 / times)
    return statistics.median(spent[2:])


def on_jax() -> tuple[str, Timer, Callable[[], Any]]:
    """Return the name of the device, a timer, and a copy to be timed."""
    import jax

    negative = jax.jit(jax.numpy.negative, donate_argnums=0)
    array = jax.numpy.ones(COPIED)

    def copy() -> Any:
        nonlocal array
        array = negative(array)
        return array

    name = jax.devices()[0].device_kind
    return name, wall_clock(jax.block_until_ready), copy


def wall_clock(wait: Callable[[Any], Any]) -> Timer:
    """Return a timer of the wall clock, because JAX has no device events."""

    def seconds_of(work: Callable[[], Any], times: int = 20) -> float:
        spent = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(times):
                result = work()
            wait(result)
            spent.append((time.perf_counter() - start) / times)
        return statistics.median(spent[2:])

    return seconds_of


if __name__ == "__main__":
    main()
