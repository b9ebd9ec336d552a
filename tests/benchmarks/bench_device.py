"""What an average costs on a GPU, in device time. On a CPU where there is none.

    KERAS_BACKEND=torch python tests/benchmarks/bench_device.py

Three tables, on JAX and torch. *Bandwidth*: a copy of 400 MB, read and written.
*One update*: its device time, and the share of that bandwidth which it reaches
for the bytes it must move: it reads all weights to see that they are finite,
then reads weights and averages and writes the averages. *In `fit`*: a step
without an average, with one beside the weights, and with one in host memory.
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
from keras_wavg.clock import Reading
from keras_wavg.shadow import Shadow

PASSES = 4
"""Over all weights, in an update: check, read, read, write."""
COPIED = 100_000_000
"""Elements that are copied to measure the bandwidth."""

Timer = Callable[[Callable[[], Any]], float]
"""Seconds that a piece of work takes the device."""


def main() -> None:
    """Print the three tables."""
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
    """One update, all variables float32."""
    model = WeightsOnly(variables=166, parameters=parameters)
    shadow = Shadow(model, EMA(DECAY)._plan)
    steps = iter(range(1, 1_000_000))

    def update() -> Any:
        shadow.update(Reading(next(steps)))
        averages = shadow.averages
        return (getattr(averages, "_arrays", None) or averages._averages)[0]

    seconds = seconds_of(update)
    share = PASSES * 4 * parameters / seconds / bandwidth
    print(
        f"one update of {parameters / 1e6:.0f} M float32 in 166 variables: "
        f"{seconds * 1e3:.3f} ms, {share:.0%} of the bandwidth"
    )


def bench_fit() -> None:
    """A step of `fit`, with the average here and there."""
    units, layers, steps = 2048, 6, 20
    variants: dict[str, Callable[[], list[Any]]] = {
        "fit": list,
        "fit + an empty hook": lambda: [EmptyHook()],
        "fit + EMA": lambda: [EMA(DECAY)],
        "fit + EMA(every=10)": lambda: [EMA(DECAY, every=10)],
        "fit + EMA(every=10, cpu)": lambda: [
            EMA(DECAY, every=10, device="cpu")
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
    """What Keras itself takes for any callback: it no longer runs ahead."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing."""


def on_torch() -> tuple[str, Timer, Callable[[], Any]]:
    """The device's name, a timer that uses its events, and a copy."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source, target = torch.ones((2, COPIED), device=device)

    def copy() -> Any:
        return target.copy_(source)

    if device == "cpu":
        return "CPU", wall_clock(lambda _: None), copy
    return torch.cuda.get_device_name(), torch_events, copy


def torch_events(work: Callable[[], Any], times: int = 20) -> float:
    """A timer by the events that CUDA records between two kernels."""
    import torch

    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    for _ in range(7):
        began.record()
        for _ in range(times):
            work()
        ended.record()
        ended.synchronize()
        spent.append(began.elapsed_time(ended) / 1e3 / times)
    return statistics.median(spent[2:])


def on_jax() -> tuple[str, Timer, Callable[[], Any]]:
    """The device's name, a timer that waits once in many calls, and a copy."""
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
    """A timer of the wall clock; JAX shows no device events."""

    def seconds_of(work: Callable[[], Any], times: int = 20) -> float:
        spent = []
        for _ in range(7):
            began = time.perf_counter()
            for _ in range(times):
                result = work()
            wait(result)
            spent.append((time.perf_counter() - began) / times)
        return statistics.median(spent[2:])

    return seconds_of


if __name__ == "__main__":
    main()
