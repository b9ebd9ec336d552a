"""Whether power-function averages are what they say, and what they cost.

    KERAS_BACKEND=torch python tests/benchmarks/bench_profile.py

*Realised*: a training leads two weights along `t / N` and `(t / N)**2`, so that
an average of them tells its own mean age and width. Beside `PowerEMA` stands
`KarrasEMA` of ema-pytorch, if it is installed. *One update*: two averages at
once, against one. *Profile*: how long it takes to have one, of a long run.
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
from bench_ema import WeightsOnly, ours, report
from models import clock

from keras_wavg import EMA, PowerEMA, Profile
from keras_wavg.shadow import Shadow

STEPS, WIDTH = 2000, 0.1


def main() -> None:
    """Print the three tables."""
    print(f"keras {keras.__version__}, {keras.config.backend()}")
    bench_realised()
    bench_update()
    bench_profile()


def bench_realised() -> None:
    """Mean age and width, by `STEPS`, of averages of `sigma_rel=WIDTH`."""
    told = told_by(Profile.power(WIDTH, STEPS))
    print(f"\nmean age / width, by {STEPS} steps; by definition {told}")
    print(
        f"{'every':>7} {'`profile()`':>16} {'PowerEMA':>16} {'KarrasEMA':>16}"
    )
    for every in (1, 7, 10, 100):
        cells = [*by_power_ema(every), *by_ema_pytorch(every)]
        print(f"{every:7} " + " ".join(f"{cell:>16}" for cell in cells))


def by_power_ema(every: int) -> list[str]:
    """What `PowerEMA` says, and what it has, after a training in `fit`."""
    model, power = clock(STEPS), PowerEMA(WIDTH, every=every)
    x = numpy.zeros((STEPS, 1), "float32")
    model.fit(x, batch_size=1, verbose=0, callbacks=[power])
    return [told_by(power.profile()), held_in(power.get_weights())]


def by_ema_pytorch(every: int) -> list[str]:
    """What `KarrasEMA` has of the same weights, if it is installed."""
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
    return [held_in([p.detach() for p in average.ema_model])]


def told_by(profile: Profile) -> str:
    """Mean age and width, by all steps, as a profile says."""
    return f"{profile.mean_age / STEPS:.4f} / {profile.sigma_rel:.4f}"


def held_in(weights: Sequence[Any]) -> str:
    """Mean age and width, by all steps, as the weights tell."""
    share, square = map(float, weights)
    width = max(0.0, square - share**2) ** 0.5
    return f"{1 - share:.4f} / {width:.4f}"


def bench_update() -> None:
    """One update of 36 M parameters in 166 variables."""
    rows: dict[str, Callable[[], Any]] = {}
    for name, average in {
        "EMA": EMA(0.999),
        "PowerEMA(0.1)": PowerEMA(0.1),
        "PowerEMA((0.05, 0.1))": PowerEMA((0.05, 0.1)),
    }.items():
        model = WeightsOnly(variables=166, parameters=36_000_000)
        rows[name] = ours(Shadow(model, average._plan), iter(range(1, 10_000)))
    report("one update, 36 M float32 in 166 variables", rows, rounds=11)


def bench_profile() -> None:
    """The profile of a run of a million steps."""
    print("\na profile of 1,000,000 steps, and what it knows")
    for name, make in {
        "Profile.ema": lambda: Profile.ema(0.9999, 1_000_000),
        "Profile.power": lambda: Profile.power(WIDTH, 1_000_000),
    }.items():
        began = time.perf_counter()
        text = str(make())
        print(f"{name:15} {time.perf_counter() - began:.2f} s: {text}")


if __name__ == "__main__":
    main()
