"""Does averaging help? Five averages of the weights, against the raw ones.

A small convolutional net learns Fashion-MNIST and scikit-learn's digits, at a
learning rate that stays high and at one that is annealed. All averages are of
the one training that gave the raw weights they are compared with: three ride
along, two are made of its files, and validation images choose which checkpoints
go into the soup, and how wide the average is that `sweep` makes. Test images
are for the table alone. A seed draws the weights, the order of the batches, and
which images are for what.

    KERAS_BACKEND=jax python examples/compare_averages.py --figure compare.png

Needs `keras_wavg[plots]`, scikit-learn, one backend, `swa_paper.py` beside it,
and the data: a folder with the four files of Debian's package
dataset-fashion-mnist, or the internet. Takes ten minutes on a CPU.
"""

# %%
import argparse
import functools
import operator
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy
from keras import layers
from sklearn.datasets import load_digits
from swa_paper import calibration_error, load_data, loss_of

from keras_wavg import EMA, LAWA, SWA, PowerEMA, greedy_soup, sweep, update_bn

RATE = 0.1
WIDTHS = 0.03, 0.05, 0.07, 0.1, 0.14, 0.19
# Enough images to measure the statistics of `BatchNormalization` with.
ENOUGH = 2_000
Data = tuple[numpy.ndarray, numpy.ndarray]
Weights = dict[str, list[numpy.ndarray]]
Scores = dict[str, list[float]]
FORMS = ".2f", ".4f", ".4f", "+.2f", "+.4f", "+.4f"


class Task(NamedTuple):
    """What is learned, and for how long."""

    load: Callable[[int], list[Data]]
    batch: int
    epochs: int


# %%
def drawn(data: Data, *counts: int, seed: int) -> list[Data]:
    """Parts of so many images, in random order."""
    order = numpy.random.default_rng(seed).permutation(len(data[0]))
    parts = numpy.split(order, numpy.cumsum(counts))
    return [(data[0][part], data[1][part]) for part in parts[: len(counts)]]


def fashion(all_data: tuple[Data, Data], images: int, seed: int) -> list[Data]:
    """So many images for training, 5,000 to validate, and the test."""
    training, test = all_data
    return [*drawn(training, images, 5_000, seed=seed), test]


def digits(seed: int) -> list[Data]:
    """The same of the 1,797 digits of 8 x 8 pixels: 900, 300 and 597."""
    found = load_digits()
    images = (found.images / 16).astype("float32")[..., None]
    data = images, found.target.astype("int32")
    return drawn(data, 900, 300, 597, seed=seed)


def build_model(images: numpy.ndarray) -> keras.Model:
    """Three convolutions, 34,000 weights for images of 28 x 28 pixels."""
    model = keras.Sequential([keras.Input(images.shape[1:])])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(10, activation="softmax"))
    return model


# %% [markdown]
# The one training. The lengths of the averages are common guesses, the same
# for all: a half-life of one epoch, the last quarter, the latest five epochs.


# %%
def train(task: Task, training: Data, folder: Path, *, anneal: bool) -> Weights:
    """Raw weights and three averages; checkpoints and snapshots in a folder."""
    model, some = build_model(training[0]), training[0][:ENOUGH]
    steps = -(-len(training[0]) // task.batch)
    cosine = keras.optimizers.schedules.CosineDecay(RATE, steps * task.epochs)
    optimizer = keras.optimizers.SGD(cosine if anneal else RATE, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    averages = {
        "`EMA`": EMA(half_life=steps, swap=False),
        "`SWA`": SWA(3 * task.epochs // 4, bn_data=some, swap=False),
        "`LAWA`": LAWA(5, swap=False),
    }
    files = [
        PowerEMA((0.05, 0.1), snapshots=folder / "snapshots", swap=False),
        keras.callbacks.ModelCheckpoint(
            folder / "epochs/{epoch:03d}.weights.h5", save_weights_only=True
        ),
    ]
    sizes = {"batch_size": task.batch, "epochs": task.epochs, "verbose": 0}
    model.fit(*training, callbacks=[*averages.values(), *files], **sizes)

    raw = model.get_weights()
    weights = {}
    for name, average in averages.items():
        with average.applied():
            weights[name] = model.get_weights()
    # A control: what the measuring gains alone.
    update_bn(model, some, verbose=0)
    return {"raw": raw, "raw, `update_bn`": model.get_weights(), **weights}


# %% [markdown]
# Of the files two more averages are made, which validation images choose.


# %%
def choose(
    model: keras.Model, images: numpy.ndarray, validation: Data, folder: Path
) -> Weights:
    """The greedy soup of the epochs, and the average of the best width."""

    def loss(model: keras.Model) -> float:
        return scores(model, validation)[1]

    def loss_and_weights(path: Path) -> tuple[float, Any]:
        model.load_weights(path)
        return loss(model), model.get_weights()

    epochs, snapshots = (
        sorted(folder.glob(f"{kind}/*")) for kind in ("epochs", "snapshots")
    )
    how = {"model": model, "bn_data": images, "mode": "min", "verbose": 0}
    greedy_soup(epochs, loss, folder / "soup.weights.h5", **how)
    soup = model.get_weights()
    made = sweep(snapshots, WIDTHS, loss_and_weights, folder / "widths")
    _, post_hoc = min(made.values(), key=operator.itemgetter(0))
    return {"`greedy_soup`": soup, "`PowerEMA`, `sweep`": post_hoc}


# %%
def scores(model: keras.Model, data: Data) -> list[float]:
    """Accuracy in %, loss, and calibration error."""
    images, labels = data
    found = model.predict(images, batch_size=500, verbose=0)
    accuracy = 100 * float((found.argmax(axis=1) == labels).mean())
    return [accuracy, loss_of(found, labels), calibration_error(found, labels)]


def run(task: Task, *, anneal: bool, seed: int) -> Scores:
    """The test scores of all weights of one training."""
    keras.utils.set_random_seed(seed)
    training, validation, test = task.load(seed)
    model = build_model(training[0])
    with tempfile.TemporaryDirectory() as name:
        weights = train(task, training, Path(name), anneal=anneal)
        some = training[0][:ENOUGH]
        weights |= choose(model, some, validation, Path(name))
    table = {}
    for name, arrays in weights.items():
        model.set_weights(arrays)
        table[name] = scores(model, test)
    return table


# %%
def with_changes(runs: list[Scores]) -> numpy.ndarray:
    """Scores by seed, row and column, then their differences to the raw."""
    found = numpy.array([list(table.values()) for table in runs])
    return numpy.concatenate([found, found - found[:, :1]], axis=2)


def print_table(title: str, runs: list[Scores]) -> None:
    """Mean and standard deviation over the seeds, in Markdown."""
    columns = "accuracy %", "loss", "calibration error"
    cells = [title, *columns, *(f"change of {name}" for name in columns)]
    print(f"\n| {' | '.join(cells)} |\n{'|---' * 7}|")
    found = with_changes(runs)
    for row, name in enumerate(runs[0]):
        means, spreads = found[:, row].mean(0), found[:, row].std(0, ddof=1)
        cells = [
            f"{mean:{form}} ± {spread:{form.removeprefix('+')}}"
            for mean, spread, form in zip(means, spreads, FORMS, strict=True)
        ]
        print(f"| {' | '.join([name, *cells])} |")


# %%
def draw(results: dict[str, dict[str, list[Scores]]], path: Path) -> None:
    """What each row changes in loss and accuracy, a column for each task."""
    figure, axes = plt.subplots(
        2, len(results), figsize=(6, 3.6), layout="constrained", sharey=True
    )
    for (above, below), (task, by_rate) in zip(
        axes.T, results.items(), strict=True
    ):
        draw_changes(above, by_rate, 4)
        draw_changes(below, by_rate, 3)
        above.set_title(task, fontsize="medium")
        above.set_xlabel("test loss, change from raw", fontsize="small")
        below.set_xlabel("test accuracy, points from raw", fontsize="small")
    handles = axes[0, 0].get_legend_handles_labels()
    look = {"ncols": 2, "frameon": False, "fontsize": "small"}
    figure.legend(*handles, loc="outside lower center", **look)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_changes(ax: Any, by_rate: dict[str, list[Scores]], score: int) -> None:
    """A small mark for each seed, and a bar at their mean."""
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    looks = ("#0072B2", "o", -0.22), ("#D55E00", "^", 0.22)
    for (rate, runs), look in zip(by_rate.items(), looks, strict=True):
        color, marker, shift = look
        names = [name.replace("`", "") for name in runs[0]][1:]
        heights = numpy.arange(len(names)) + shift
        changes = with_changes(runs)[:, 1:, score]
        seeds = changes.ravel(), numpy.tile(heights, len(runs)), marker
        ax.plot(*seeds, c=color, ms=4, alpha=0.5, mew=0, label=f"{rate} rate")
        ax.plot(changes.mean(0), heights, "|", c=color, ms=7, mew=2)
    ax.set_yticks(range(len(names)), names, fontsize="small")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params("x", labelsize="small")
    ax.locator_params("x", nbins=5)
    ax.spines[["top", "right"]].set_visible(False)


# %%
def parsed() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=10_000)
    # Of Fashion-MNIST; three times as many of the digits.
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train each task at both rates for each seed, print and draw."""
    options, began = parsed(), time.monotonic()
    everything = load_data(options.data, 60_000)
    load = functools.partial(fashion, everything, options.images)
    tasks = {
        "Fashion-MNIST": Task(load, 128, options.epochs),
        "digits": Task(digits, 32, 3 * options.epochs),
    }
    print(f"backend: {keras.config.backend()}; mean ± standard deviation")
    results: dict[str, dict[str, list[Scores]]] = {}
    for name, task in tasks.items():
        results[name] = {}
        for rate in ("constant", "annealed"):
            results[name][rate] = [
                run(task, anneal=rate == "annealed", seed=seed)
                for seed in range(options.seeds)
            ]
            print_table(f"{name}, {rate} rate", results[name][rate])
    print(f"\n{time.monotonic() - began:.0f} seconds")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
