"""Reproduce two findings of "Averaging Weights Leads to Wider Optima".

The paper (Izmailov et al., 2018, https://arxiv.org/abs/1803.05407) finds that
SWA has a higher training loss than SGD and generalizes better. Here a small
convolutional network is trained on Fashion-MNIST. From the same half-trained
weights, training continues in three ways:

- SGD with an annealed learning rate,
- a high constant learning rate, averaged by `SWA`,
- a cyclic learning rate, with an ensemble of the weights at its minima by
  `FGE`. The mean of these weights is the SWA solution of the same training.

The figure shows the training loss and the test error on the plane through the
weights of SGD, of SWA, and the half-trained weights.

    KERAS_BACKEND=jax python examples/swa_paper.py --figure plane.png

Requires `keras_wavg[plots]`, a backend, and the data: a directory with the four
files of Debian's package dataset-fashion-mnist, or an internet connection.
Takes six minutes on a CPU.
"""

# %%
import argparse
import gzip
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy
from keras import layers

from keras_wavg import (
    FGE,
    SWA,
    AnnealToConstant,
    CyclicLearningRate,
    update_bn,
)
from keras_wavg.plots import plot_loss_plane

BATCH_SIZE = 128
HIGH, MIDDLE, LOW = 0.1, 0.05, 0.001
Data = tuple[numpy.ndarray, numpy.ndarray]


# %%
def load_data(directory: Path, images: int) -> tuple[Data, Data]:
    """Load the first `images` training images, and all test images."""
    if directory.is_dir():
        (x, y), test = (
            (
                read_idx(directory / f"{part}-images-idx3-ubyte.gz", 28, 28),
                read_idx(directory / f"{part}-labels-idx1-ubyte.gz"),
            )
            for part in ("train", "t10k")
        )
    else:
        (x, y), test = keras.datasets.fashion_mnist.load_data()
    train = x[:images], y[:images]
    return tuple((normalize(x), y.astype("int32")) for x, y in (train, test))


def read_idx(path: Path, *item: int) -> numpy.ndarray:
    """Read the items of a file in the format of MNIST, each of a shape."""
    with gzip.open(path) as file:
        header = 8 + 4 * len(item)
        flat = numpy.frombuffer(file.read(), "uint8", offset=header)
    return flat.reshape(-1, *item)


def normalize(images: numpy.ndarray) -> numpy.ndarray:
    """Scale to a mean of about 0 and a variance of about 1."""
    return (images[..., None].astype("float32") / 255 - 0.286) / 0.353


def build_model() -> keras.Model:
    """Build three convolutions with 34,000 weights."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    return model


# %% [markdown]
# Training continues from some weights with another learning rate.


# %%
def train(
    start: Any, learning_rate: Any, data: Data, epochs: int, *callbacks: Any
) -> keras.Model:
    """Train from weights, or from scratch if `start` is `None`."""
    model = build_model()
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9, weight_decay=5e-4),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    if start is not None:
        model.set_weights(start)
    model.fit(
        *data,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks],
    )
    return model


# %% [markdown]
# Compute the scores. A model is calibrated if its confidence equals its
# accuracy. The expected calibration error is the mean absolute difference of
# both, over 15 bins of confidence.


# %%
def loss_of(probabilities: numpy.ndarray, labels: numpy.ndarray) -> float:
    """Return the negative log-likelihood, in nats."""
    likelihood = probabilities[numpy.arange(len(labels)), labels]
    return float(-numpy.log(numpy.maximum(likelihood, 1e-12)).mean())


def calibration_error(
    probabilities: numpy.ndarray, labels: numpy.ndarray
) -> float:
    """Return the expected calibration error, from 0 to 1."""
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == labels
    bins = numpy.minimum((confidence * 15).astype(int), 14)
    gaps = numpy.bincount(bins, confidence - is_correct, minlength=15)
    return float(numpy.abs(gaps).sum() / len(labels))


def scores(model: Any, training: Data, test: Data) -> list[float]:
    """Return training loss, test loss, accuracy in % and calibration error."""
    on_training, on_test = (
        model.predict(x, batch_size=500, verbose=0)
        for x in (training[0], test[0])
    )
    accuracy = 100 * float((on_test.argmax(axis=1) == test[1]).mean())
    return [
        loss_of(on_training, training[1]),
        loss_of(on_test, test[1]),
        accuracy,
        calibration_error(on_test, test[1]),
    ]


# %%
def run(seed: int, training: Data, test: Data, epochs: int) -> tuple[Any, Any]:
    """Return the scores of each method, and the weights for the figure."""
    keras.utils.set_random_seed(seed)
    half, steps = epochs // 2, -(-len(training[0]) // BATCH_SIZE)
    remaining = (epochs - half) * steps
    start = train(None, HIGH, training, half).get_weights()

    annealed = AnnealToConstant(
        HIGH,
        LOW,
        start_step=0,
        anneal_steps=remaining * 4 // 5,
        anneal="linear",
    )
    sgd = train(start, annealed, training, epochs - half)

    swa = SWA(start_epoch=(epochs - half) // 5, batch_norm_data=training[0])
    averaged = train(start, HIGH, training, epochs - half, swa)

    weights = {
        "SGD": sgd.get_weights(),
        "SWA": averaged.get_weights(),
        "half-trained": start,
    }
    table = {
        "SGD": scores(sgd, training, test),
        "SWA": scores(averaged, training, test),
    }
    swa.restore()
    table["same training, not averaged"] = scores(averaged, training, test)
    ensemble = fge_scores(start, training, test, epochs - half, 2 * steps)
    return table | ensemble, weights


def fge_scores(
    start: Any, training: Data, test: Data, epochs: int, cycle: int
) -> dict[str, list[float]]:
    """Return the scores of an ensemble, and of the mean of its members."""
    triangle = CyclicLearningRate(MIDDLE, LOW, cycle, shape="triangle")
    fge = FGE(cycle)
    model = train(start, triangle, training, epochs, fge)
    table = {"FGE": scores(fge, training, test)}
    with fge.applied():
        update_bn(model, training[0], batch_size=500, verbose=0)
        table["mean of the members of FGE"] = scores(model, training, test)
    return table


# %% [markdown]
# Draw the figure. At each point of the plane, measure the statistics of
# `BatchNormalization`, then the training loss and the test error.


# %%
def draw(
    weights: Any, training: Data, test: Data, path: Path, grid: int
) -> None:
    """Draw training loss and test error on the plane through three points."""
    model = build_model()
    count = 16 * BATCH_SIZE
    x, y = training[0][:count], training[1][:count]

    def predict(images: numpy.ndarray) -> numpy.ndarray:
        return model.predict(images, batch_size=500, verbose=0)

    def training_loss() -> float:
        update_bn(model, x, batch_size=512, verbose=0)
        return loss_of(predict(x), y)

    def test_error() -> float:
        update_bn(model, x, batch_size=512, verbose=0)
        labels = predict(test[0][:count]).argmax(axis=1)
        return 100 * float((labels != test[1][:count]).mean())

    figure, axes = plt.subplots(
        1, 2, figsize=(11, 4.7), layout="compressed", sharey=True
    )
    for ax, score, label, title in [
        (
            axes[0],
            training_loss,
            "training loss (lower is better)",
            "Training loss around SGD and SWA",
        ),
        (
            axes[1],
            test_error,
            "test error in % (lower is better)",
            "Test error on the same plane of weight space",
        ),
    ]:
        plot_loss_plane(
            model, weights, score, resolution=grid, ax=ax, label=label
        )
        ax.set_title(title)
    figure.savefig(path, dpi=150)


# %%
def print_table(tables: list[dict[str, list[float]]]) -> None:
    """Print mean and standard deviation of each score over the seeds."""
    print(f"backend: {keras.config.backend()}; mean ± standard deviation")
    names = ["training loss", "test loss", "test accuracy %", "calibration"]
    print(" | ".join([f"{'':29}", *(f"{name:15}" for name in names)]))
    for method in tables[0]:
        values = numpy.array([table[method] for table in tables])
        cells = [
            f"{mean:.{digits}f} ± {std:.{digits}f}"
            for mean, std, digits in zip(
                values.mean(0), values.std(0, ddof=1), (4, 4, 2, 4), strict=True
            )
        ]
        print(" | ".join([f"{method:29}", *(f"{cell:15}" for cell in cells)]))


# %%
def main() -> None:
    """Train for each seed, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--grid", type=int, default=13)
    options = parser.parse_args()

    training, test = load_data(options.data, options.images)
    runs = []
    for seed in range(options.seeds):
        runs.append(run(seed, training, test, options.epochs))
        print(f"seed {seed} done", flush=True)

    print_table([table for table, _ in runs])
    if options.figure:
        draw(runs[0][1], training, test, options.figure, options.grid)


if __name__ == "__main__":
    main()
