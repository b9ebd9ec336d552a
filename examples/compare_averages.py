"""Compare five averages of the weights with the raw weights.

A small convolutional network is trained on Fashion-MNIST and on scikit-learn's
digits, with a constant and with an annealed learning rate. In two other tasks
30 % of the labels are wrong, and the training is short. All averages are from
the same training as the raw weights that they are compared with: three are
callbacks, and two are made from the saved files. Validation images select the
checkpoints of the soup and the width of the average that `sweep` makes. Test
images, with true labels, are used only for the results. The seed determines the
initial weights, the order of the batches and the split of the images.

    KERAS_BACKEND=jax python examples/compare_averages.py --figure compare.png

`--results FILE` adds the results to a JSON file, and trains only what the file
does not have yet. The results of ten seeds are in `compare_averages.json`.

Requires `keras_wavg[plots]`, scikit-learn, a backend, `swa_paper.py` in the
same directory, and the data: a directory with the four files of Debian's
package dataset-fashion-mnist, or an internet connection. Takes about three
minutes per seed on a CPU.
"""

# %%
import argparse
import functools
import json
import operator
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy
import scipy.stats
from keras import layers
from sklearn.datasets import load_digits
from swa_paper import calibration_error, load_data, loss_of

from keras_wavg import (
    EMA,
    LAWA,
    SWA,
    PowerEMA,
    decay_from,
    greedy_soup,
    sweep,
    update_bn,
)

LEARNING_RATE = 0.1
WIDTHS = 0.03, 0.05, 0.07, 0.1, 0.14, 0.19
# Enough images to measure the statistics of `BatchNormalization`.
BATCH_NORM_IMAGES = 2_000
WRONG_LABELS = 0.3
METRICS = "accuracy %", "loss", "calibration error"
FORMATS = ".2f", ".4f", ".4f", "+.2f", "+.4f", "+.4f"
Data = tuple[numpy.ndarray, numpy.ndarray]
Weights = dict[str, list[numpy.ndarray]]
Scores = dict[str, list[float]]
Results = dict[str, dict[str, list[Scores]]]
"""Scores by data set, learning rate, seed and average."""


class Task(NamedTuple):
    """A data set, and how to train on it."""

    load: Callable[[int], list[Data]]
    batch_size: int
    epochs: int


# %%
def split(data: Data, *counts: int, seed: int) -> list[Data]:
    """Draw disjoint random parts with the given numbers of images."""
    order = numpy.random.default_rng(seed).permutation(len(data[0]))
    parts = numpy.split(order, numpy.cumsum(counts))
    return [(data[0][part], data[1][part]) for part in parts[: len(counts)]]


@functools.cache
def fashion_data(directory: Path) -> tuple[Data, Data]:
    """Load the training and test images of Fashion-MNIST once."""
    return load_data(directory, 60_000)


def fashion(directory: Path, images: int, seed: int) -> list[Data]:
    """Split Fashion-MNIST into training, 5,000 validation, and test images."""
    training, test = fashion_data(directory)
    return [*split(training, images, 5_000, seed=seed), test]


def noisy(load: Callable[[int], list[Data]], seed: int) -> list[Data]:
    """Replace labels by random other ones, except those of the test images."""
    *others, test = load(seed)
    rng = numpy.random.default_rng(seed)
    parts = []
    for images, labels in others:
        shift = rng.integers(1, 10, len(labels))
        wrong = rng.random(len(labels)) < WRONG_LABELS
        noisy_labels = numpy.where(wrong, (labels + shift) % 10, labels)
        parts.append((images, noisy_labels.astype("int32")))
    return [*parts, test]


def digits(seed: int) -> list[Data]:
    """Split 1,797 digits of 8 x 8 pixels into 900, 300 and 597 images."""
    loaded = load_digits()
    images = (loaded.images / 16).astype("float32")[..., None]
    data = images, loaded.target.astype("int32")
    return split(data, 900, 300, 597, seed=seed)


def build_model(images: numpy.ndarray) -> keras.Model:
    """Build three convolutions: 34,000 weights for 28 x 28 pixels."""
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
# Train once. The lengths of the averages are common choices, the same for all
# tasks: a half-life of one epoch, the last quarter, the latest five epochs.


# %%
def train(
    task: Task, training: Data, directory: Path, *, anneal: bool
) -> Weights:
    """Return raw and averaged weights, and save checkpoints and snapshots."""
    model = build_model(training[0])
    images = training[0][:BATCH_NORM_IMAGES]
    steps = -(-len(training[0]) // task.batch_size)
    cosine = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, steps * task.epochs
    )
    optimizer = keras.optimizers.SGD(
        cosine if anneal else LEARNING_RATE, momentum=0.9
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    averages = {
        "`EMA`": EMA(decay_from(half_life=steps), swap=False),
        "`SWA`": SWA(3 * task.epochs // 4, batch_norm_data=images, swap=False),
        "`LAWA`": LAWA(5, swap=False),
    }
    savers = [
        PowerEMA((0.05, 0.1), snapshot_dir=directory / "snapshots", swap=False),
        keras.callbacks.ModelCheckpoint(
            directory / "epochs/{epoch:03d}.weights.h5", save_weights_only=True
        ),
    ]
    model.fit(
        *training,
        batch_size=task.batch_size,
        epochs=task.epochs,
        verbose=0,
        callbacks=[*averages.values(), *savers],
    )

    raw = model.get_weights()
    weights = {}
    for name, average in averages.items():
        with average.applied():
            weights[name] = model.get_weights()
    # A control: the effect of measured statistics without an average.
    update_bn(model, images, verbose=0)
    return {"raw": raw, "raw, `update_bn`": model.get_weights(), **weights}


# %% [markdown]
# Make two more averages from the files, selected on validation images.


# %%
def average_files(
    model: keras.Model,
    images: numpy.ndarray,
    validation: Data,
    directory: Path,
) -> Weights:
    """Return the greedy soup, and the average with the best width."""

    def loss(model: keras.Model) -> float:
        return scores(model, validation)[1]

    def loss_and_weights(path: Path) -> tuple[float, Any]:
        model.load_weights(path)
        return loss(model), model.get_weights()

    epochs, snapshots = (
        sorted(directory.glob(f"{kind}/*")) for kind in ("epochs", "snapshots")
    )
    greedy_soup(
        epochs,
        loss,
        directory / "soup.weights.h5",
        model=model,
        batch_norm_data=images,
        mode="min",
        verbose=0,
    )
    soup = model.get_weights()
    averages = sweep(snapshots, directory / "widths", WIDTHS, loss_and_weights)
    _, best = min(averages.values(), key=operator.itemgetter(0))
    return {"`greedy_soup`": soup, "`PowerEMA`, `sweep`": best}


# %%
def scores(model: keras.Model, data: Data) -> list[float]:
    """Return accuracy in %, loss, and calibration error."""
    images, labels = data
    predicted = model.predict(images, batch_size=500, verbose=0)
    accuracy = 100 * float((predicted.argmax(axis=1) == labels).mean())
    return [
        accuracy,
        loss_of(predicted, labels),
        calibration_error(predicted, labels),
    ]


def run(task: Task, *, anneal: bool, seed: int) -> Scores:
    """Train once, and return the test scores of all weights."""
    keras.utils.set_random_seed(seed)
    training, validation, test = task.load(seed)
    model = build_model(training[0])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        weights = train(task, training, directory, anneal=anneal)
        images = training[0][:BATCH_NORM_IMAGES]
        weights |= average_files(model, images, validation, directory)
    table = {}
    for name, arrays in weights.items():
        model.set_weights(arrays)
        table[name] = scores(model, test)
    return table


def make_tasks(options: argparse.Namespace) -> dict[str, Task]:
    """Return the tasks by name."""
    load = functools.partial(fashion, options.data, options.images)
    load_few = functools.partial(fashion, options.data, options.images // 5)
    return {
        "Fashion-MNIST": Task(load, 128, options.epochs),
        "digits": Task(digits, 32, 3 * options.epochs),
        "label noise": Task(
            functools.partial(noisy, load), 128, options.epochs
        ),
        "short training": Task(load_few, 128, options.epochs),
    }


def add_runs(results: Results, options: argparse.Namespace) -> None:
    """Train each task with both learning rates for each missing seed."""
    tasks = make_tasks(options)
    for name in options.tasks or tasks:
        by_rate = results.setdefault(name, {})
        for rate in ("constant", "annealed"):
            runs = by_rate.setdefault(rate, [])
            for seed in range(len(runs), options.seeds):
                runs.append(
                    run(tasks[name], anneal=rate == "annealed", seed=seed)
                )
                if options.results:
                    options.results.write_text(json.dumps(results))


# %%
def with_changes(runs: list[Scores]) -> numpy.ndarray:
    """Append the differences from the raw weights to the scores.

    Returns an array by seed, average, and three scores and three differences.
    """
    table = numpy.array([list(scores.values()) for scores in runs])
    return numpy.concatenate([table, table - table[:, :1]], axis=2)


def half_width(values: numpy.ndarray) -> float:
    """Return that of the 95 % confidence interval of the mean, by Student."""
    count = len(values)
    return scipy.stats.t.ppf(0.975, count - 1) * scipy.stats.sem(values)


def print_table(title: str, runs: list[Scores]) -> None:
    """Print means over the seeds and their confidence, in Markdown."""
    cells = [title, *METRICS, *(f"change of {name}" for name in METRICS)]
    print(f"\n| {' | '.join(cells)} |\n{'|---' * 7}|")
    table = with_changes(runs)
    for row, name in enumerate(runs[0]):
        cells = [
            f"{values.mean():{form}} ± "
            f"{half_width(values):{form.removeprefix('+')}}"
            for values, form in zip(table[:, row].T, FORMATS, strict=True)
        ]
        print(f"| {' | '.join([name, *cells])} |")


# %%
def draw(results: Results, path: Path) -> None:
    """Draw the changes of loss and accuracy, a column for each task."""
    figure, axes = plt.subplots(
        2,
        len(results),
        figsize=(2 + 2.2 * len(results), 5.2),
        layout="constrained",
        sharex="row",
        sharey=True,
    )
    for column, (task, by_rate) in zip(axes.T, results.items(), strict=True):
        draw_changes(column[0], by_rate, score=4)
        draw_changes(column[1], by_rate, score=3)
        column[0].set_title(task, fontsize="medium")
        column[0].set_xlabel(
            "change of the test loss\n$\\bf{\\leftarrow better}$"
        )
        column[1].set_xlabel(
            "change of the accuracy, in points\n$\\bf{better \\rightarrow}$"
        )
    figure.suptitle(
        "Change of the test scores by averaging the weights\n"
        "(0: the raw weights of the same training)",
        fontsize="medium",
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_changes(
    ax: Any, by_rate: dict[str, list[Scores]], *, score: int
) -> None:
    """Draw a small marker for each seed, and the interval of their mean."""
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    styles = ("#0072B2", "o", -0.2), ("#D55E00", "^", 0.2)
    for (rate, runs), style in zip(by_rate.items(), styles, strict=True):
        color, marker, shift = style
        names = [name.replace("`", "") for name in runs[0]][1:]
        heights = numpy.arange(len(names)) + shift
        changes = with_changes(runs)[:, 1:, score]
        ax.plot(
            changes.ravel(),
            numpy.tile(heights, len(runs)),
            marker,
            color=color,
            markersize=4,
            alpha=0.5,
            markeredgewidth=0,
            label=f"{rate} learning rate: a seed",
        )
        ax.errorbar(
            changes.mean(0),
            heights,
            xerr=[half_width(values) for values in changes.T],
            fmt="|",
            color=color,
            markersize=9,
            markeredgewidth=2.5,
            label=f"{rate}: mean of {len(runs)} seeds, 95 % interval",
        )
    ax.set_yticks(range(len(names)), names, fontsize="small")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params("x", labelsize="small")
    ax.xaxis.label.set_size("small")
    ax.locator_params("x", nbins=5)
    ax.spines[["top", "right"]].set_visible(False)


# %%
def parse_options() -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="of Fashion-MNIST; the digits have three times as many",
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", help="names of some of the tasks")
    parser.add_argument(
        "--results",
        type=Path,
        help="JSON file that is read if it exists, and written",
    )
    parser.add_argument("--figure", type=Path, help="image file to write")
    return parser.parse_args()


def main() -> None:
    """Train, or read the results; then print and draw them."""
    options, start = parse_options(), time.monotonic()
    results: Results = {}
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    print(f"backend: {keras.config.backend()}")
    add_runs(results, options)
    print(f"{time.monotonic() - start:.0f} seconds")
    print("mean ± half of the 95 % confidence interval, over the seeds")
    for task, by_rate in results.items():
        for rate, runs in by_rate.items():
            print_table(f"{task}, {rate} learning rate", runs)
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
