"""Accuracy and cost of power-function averages.

    KERAS_BACKEND=torch python tests/benchmarks/bench_profile.py

Prints three tables:

- Realized: the training moves two weights along `t / N` and `(t / N)**2`, so an
  average of them shows its own mean age and width. `PowerEMA` is compared with
  its profile, and with `KarrasEMA` of ema-pytorch if it is installed.
- One update: of two averages at once, against one.
- Profile: the time to compute the profile of a long run.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy
from bench_ema import WeightsOnly, device_update, report
from models import clock

from keras_wavg import EMA, PowerEMA, Profile
from keras_wavg.averaged_weights import AveragedWeights

STEPS, WIDTH = 2000, 0.1


def main() -> None:
    """Print the three tables."""
    print(f"keras {keras.__version__}, {keras.config.backend()}")
    bench_realized()
    bench_update()
    bench_profile()


def bench_realized() -> None:
    """Print mean age and width of averages, divided by `STEPS`."""
    defined = from_profile(Profile.power(WIDTH, STEPS))
    print(
        f"\nmean age / width, divided by {STEPS} steps; by definition {defined}"
    )
    print(
        f"{'every':>7} {'`profile()`':>16} {'PowerEMA':>16} {'KarrasEMA':>16}"
    )
    for every in (1, 7, 10, 100):
        cells = [*of_power_ema(every), *of_ema_pytorch(every)]
        print(f"{every:7} " + " ".join(f"{cell:>16}" for cell in cells))


def of_power_ema(every: int) -> list[str]:
    """Return what `PowerEMA` reports after `fit`, and what it contains."""
    model, power = clock(STEPS), PowerEMA(WIDTH, every_steps=every)
    x = numpy.zeros((STEPS, 1), "float32")
    model.fit(x, batch_size=1, verbose=0, callbacks=[power])
    return [from_profile(power.profile()), from_weights(power.get_weights())]


def of_ema_pytorch(every: int) -> list[str]:
    """Return what `KarrasEMA` contains, if it is installed."""
    try:
        import torch
        from ema_pytorch.post_hoc_ema import KarrasEMA
    except ImportError:
        return []
    weights = torch.nn.ParameterList([torch.zeros(()), torch.zeros(())])
    average = KarrasEMA(weights, sigma_rel=WIDTH, update_every=every)
    for step in range(1, STEPS + 1):
        weights[0].data.fill_(step / STEPS)
        weights[1].data.fill_((step / STEPS) ** 2)
        average.update()
    return [from_weights([p.detach() for p in average.ema_model])]


def from_profile(profile: Profile) -> str:
    """Mean age and width of a profile, divided by `STEPS`."""
    return f"{profile.mean_age / STEPS:.4f} / {profile.sigma_rel:.4f}"


def from_weights(weights: Sequence[Any]) -> str:
    """Mean age and width, divided by `STEPS`, from averaged weights."""
    mean, square = map(float, weights)
    width = max(0.0, square - mean**2) ** 0.5
    return f"{1 - mean:.4f} / {width:.4f}"


def bench_update() -> None:
    """Time one update of 36 M parameters in 166 variables."""
    rows: dict[str, Callable[[], Any]] = {}
    for name, average in {
        "EMA": EMA(0.999),
        "PowerEMA(0.1)": PowerEMA(0.1),
        "PowerEMA((0.05, 0.1))": PowerEMA((0.05, 0.1)),
    }.items():
        model = WeightsOnly(variables=166, parameters=36_000_000)
        rows[name] = device_update(
            AveragedWeights(model, average._plan), iter(range(1, 10_000))
        )
    report("one update, 36 M float32 in 166 variables", rows, rounds=11)


def bench_profile() -> None:
    """Time the profile of a run of a million steps."""
    print("\na profile of 1,000,000 steps, and its text")
    for name, make in {
        "Profile.ema": lambda: Profile.ema(0.9999, 1_000_000),
        "Profile.power": lambda: Profile.power(WIDTH, 1_000_000),
    }.items():
        start = time.perf_counter()
        text = str(make())
        print(f"{name:15} {time.perf_counter() - start:.2f} s: {text}")


if __name__ == "__main__":
    main()
