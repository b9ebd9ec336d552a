"""Benchmark of the averages that sample epochs, and of `update_bn`.

    KERAS_BACKEND=jax python tests/benchmarks/bench_swa.py

Prints two tables, timed as in `bench_ema.py`: rows in turn, medians.

- An epoch of `fit` with 22 million weights and each method that samples at its
  end. The average is swapped in at the end of each epoch and out again.
- A pass of `update_bn` over the data, against `predict` on the same data, and
  on torch also against `torch.optim.swa_utils.update_bn`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

import keras
from bench_ema import dense_model, epoch, random, report
from keras import layers

from keras_wavg import EMA, FGE, LAWA, SWA, SWAG, Lookahead
from keras_wavg.batchnorm import Measurement

STEPS = 20


def main() -> None:
    """Print both tables."""
    print(f"keras {keras.__version__}, {keras.config.backend()}")
    bench_epoch()
    bench_statistics()


def bench_epoch(units: int = 2048, depth: int = 6, rounds: int = 5) -> None:
    """Time an epoch of 20 steps with each method."""
    methods: dict[str, Callable[[], Any]] = {
        "EMA(0.999)": lambda: EMA(0.999),
        "SWA()": SWA,
        "LAWA(5)": lambda: LAWA(5),
        "SWAG(rank=5)": lambda: SWAG(rank=5),
        "FGE(cycle_steps=20)": lambda: FGE(STEPS),
        "Lookahead(5)": lambda: Lookahead(5),
    }
    x, y = random(32 * STEPS, units), random(32 * STEPS, units)
    rows = {"fit": epoch(dense_model(units, depth, {}), [], x, y, 1)}
    for name, method in methods.items():
        model = dense_model(units, depth, {})
        rows[f"fit + {name}"] = epoch(model, [method()], x, y, 1)
    title = f"an epoch of fit, {STEPS} steps, 22 M parameters"
    report(title, rows, rounds, own_clock=True)


def bench_statistics(images: int = 2048, rounds: int = 7) -> None:
    """Time a pass of a net of six convolutions over images."""
    x = random(images * 16, 3 * 16 * 2).reshape(images, 16, 16, 6)[..., :3]
    model = convolutions()
    measurement = Measurement(model)
    rows: dict[str, Callable[[], Any]] = {
        "predict": lambda: model.predict(x, batch_size=128, verbose=0),
        "update_bn": lambda: measurement.update(x, batch_size=128, verbose=0),
    }
    if keras.config.backend() == "torch":
        rows["torch's update_bn"] = torch_update_bn(x)
    report(f"a pass over {images} images of 16 x 16", rows, rounds)


def convolutions() -> keras.Model:
    """Return a net of six convolutions, each with BatchNormalization."""
    model = keras.Sequential([keras.Input((16, 16, 3))])
    for _ in range(6):
        model.add(layers.Conv2D(32, 3, padding="same"))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    return model


def torch_update_bn(x: Any) -> Callable[[], None]:
    """Return the `update_bn` of torch for the same net."""
    import torch

    parts: list[Any] = []
    for channels in (3, *[32] * 5):
        parts += [
            torch.nn.Conv2d(channels, 32, 3, padding=1),
            torch.nn.BatchNorm2d(32),
            torch.nn.ReLU(),
        ]
    net = torch.nn.Sequential(*parts)
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    loader = torch.utils.data.DataLoader(images, batch_size=128)
    return lambda: torch.optim.swa_utils.update_bn(loader, net)


if __name__ == "__main__":
    main()
