"""The two findings of "Averaging Weights Leads to Wider Optima", re-measured.

Izmailov et al., 2018, https://arxiv.org/abs/1803.05407, on Fashion-MNIST. From
the same half-trained weights a small convolutional net is trained to the end

- by SGD with a learning rate that is annealed,
- with a learning rate that stays high, averaged by `SWA`,
- with a cyclic learning rate, whose minima are the members of `FGE`; the mean
  of the members' weights is SWA's solution for the same run,

and scored: the paper finds that SWA has a higher training loss than SGD and
generalizes better. The figure shows both on the plane through three points.

    KERAS_BACKEND=jax python examples/swa_paper.py --figure plane.png

Needs `keras_wavg[plots]`, one backend, and the data: a folder with the four
files of Debian's package dataset-fashion-mnist, or the internet.
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
    TriangularLearningRate,
    update_bn,
)
from keras_wavg.plots import plot_loss_plane

BATCH = 128
HIGH, MIDDLE, LOW = 0.1, 0.05, 0.001
Data = tuple[numpy.ndarray, numpy.ndarray]


# %%
def load_data(folder: Path, images: int) -> tuple[Data, Data]:
    """Training data (the first so many images) and all test data."""
    if folder.is_dir():
        (x, y), test = (
            (
                read_idx(folder / f"{part}-images-idx3-ubyte.gz", 28, 28),
                read_idx(folder / f"{part}-labels-idx1-ubyte.gz"),
            )
            for part in ("train", "t10k")
        )
    else:
        (x, y), test = keras.datasets.fashion_mnist.load_data()
    train = x[:images], y[:images]
    return tuple((pixels(x), y.astype("int32")) for x, y in (train, test))


def read_idx(path: Path, *item: int) -> numpy.ndarray:
    """The items of a file in MNIST's format, each of a shape."""
    with gzip.open(path) as file:
        header = 8 + 4 * len(item)
        flat = numpy.frombuffer(file.read(), "uint8", offset=header)
    return flat.reshape(-1, *item)


def pixels(images: numpy.ndarray) -> numpy.ndarray:
    """Numbers of mean 0 and variance 1, as good as."""
    return (images[..., None].astype("float32") / 255 - 0.286) / 0.353


def build_model() -> keras.Model:
    """Three convolutions, 34,000 weights."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    return model


# %% [markdown]
# Training goes on from given weights, at a learning rate of its own.


# %%
def train(
    start: Any, rate: Any, data: Data, epochs: int, *callbacks: Any
) -> keras.Model:
    """A model trained on from weights, or from scratch if there are none."""
    model = build_model()
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    if start is not None:
        model.set_weights(start)
    model.fit(
        *data,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks],
    )
    return model


# %% [markdown]
# The scores. A model is calibrated if it is right as often as it is sure:
# the expected calibration error is the mean distance of the two, over 15 bins
# of confidence.


# %%
def loss_of(probabilities: numpy.ndarray, labels: numpy.ndarray) -> float:
    """Negative log-likelihood in nats."""
    sure = probabilities[numpy.arange(len(labels)), labels]
    return float(-numpy.log(numpy.maximum(sure, 1e-12)).mean())


def calibration_error(
    probabilities: numpy.ndarray, labels: numpy.ndarray
) -> float:
    """Expected calibration error, from 0 to 1."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = numpy.minimum((confidence * 15).astype(int), 14)
    gaps = numpy.bincount(bins, confidence - right, minlength=15)
    return float(numpy.abs(gaps).sum() / len(labels))


def scores(model: Any, training: Data, test: Data) -> list[float]:
    """Training loss, then test loss, accuracy in % and calibration error."""
    seen, unseen = (
        model.predict(x, batch_size=500, verbose=0)
        for x in (training[0], test[0])
    )
    accuracy = 100 * float((unseen.argmax(axis=1) == test[1]).mean())
    return [
        loss_of(seen, training[1]),
        loss_of(unseen, test[1]),
        accuracy,
        calibration_error(unseen, test[1]),
    ]


# %%
def run(seed: int, training: Data, test: Data, epochs: int) -> tuple[Any, Any]:
    """The scores of each method, and the weights for the figure."""
    keras.utils.set_random_seed(seed)
    half, steps = epochs // 2, -(-len(training[0]) // BATCH)
    rest = (epochs - half) * steps
    start = train(None, HIGH, training, half).get_weights()

    annealed = AnnealToConstant(
        HIGH, LOW, start_step=0, anneal_steps=rest * 4 // 5, anneal="linear"
    )
    sgd = train(start, annealed, training, epochs - half)

    swa = SWA(start_epoch=(epochs - half) // 5, bn_data=training[0])
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
    table["SWA's run, not averaged"] = scores(averaged, training, test)
    ensemble = fge_scores(start, training, test, epochs - half, 2 * steps)
    return table | ensemble, weights


def fge_scores(
    start: Any, training: Data, test: Data, epochs: int, cycle: int
) -> dict[str, list[float]]:
    """The scores of an ensemble of the ends of cycles, and of their mean."""
    triangle = TriangularLearningRate(MIDDLE, LOW, cycle)
    fge = FGE(cycle)
    model = train(start, triangle, training, epochs, fge)
    table = {"FGE": scores(fge, training, test)}
    with fge.applied():
        update_bn(model, training[0], batch_size=500, verbose=0)
        table["FGE's run, SWA of the members"] = scores(model, training, test)
    return table


# %% [markdown]
# The figure: at each point of the plane the statistics of `BatchNormalization`
# are measured, then training loss and test error.


# %%
def draw(
    weights: Any, training: Data, test: Data, path: Path, grid: int
) -> None:
    """Training loss and test error on the plane through three points."""
    model = build_model()
    some = 16 * BATCH
    x, y = training[0][:some], training[1][:some]

    def predicted(data: numpy.ndarray) -> numpy.ndarray:
        return model.predict(data, batch_size=500, verbose=0)

    def training_loss() -> float:
        update_bn(model, x, batch_size=512, verbose=0)
        return loss_of(predicted(x), y)

    def test_error() -> float:
        update_bn(model, x, batch_size=512, verbose=0)
        wrong = predicted(test[0][:some]).argmax(axis=1) != test[1][:some]
        return 100 * float(wrong.mean())

    figure, axes = plt.subplots(
        1, 2, figsize=(11, 4.6), layout="compressed", sharey=True
    )
    for ax, score, label in [
        (axes[0], training_loss, "training loss"),
        (axes[1], test_error, "test error in %"),
    ]:
        plot_loss_plane(
            model, weights, score, resolution=grid, ax=ax, label=label
        )
    figure.savefig(path, dpi=150)


# %%
def print_table(tables: list[dict[str, list[float]]]) -> None:
    """Mean and standard deviation of each score over the seeds."""
    print(f"backend: {keras.config.backend()}; mean ± standard deviation")
    names = ["training loss", "test loss", "test accuracy %", "calibration"]
    print(" | ".join([f"{'':29}", *(f"{name:15}" for name in names)]))
    for method in tables[0]:
        found = numpy.array([table[method] for table in tables])
        cells = [
            f"{mean:.{digits}f} ± {spread:.{digits}f}"
            for mean, spread, digits in zip(
                found.mean(0), found.std(0, ddof=1), (4, 4, 2, 4), strict=True
            )
        ]
        print(" | ".join([f"{method:29}", *(f"{cell:15}" for cell in cells)]))


# %%
def main() -> None:
    """Train for each seed, print the table, draw the figure."""
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
