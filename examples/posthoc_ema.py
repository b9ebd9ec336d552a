"""The best length of an average of the weights, found after the training.

How long an average of the weights should be is commonly guessed before the
training, and each guess costs one. Here a small convolutional net is trained
once on Fashion-MNIST, at a learning rate that stays high, and two averages are
saved after each epoch. Of these snapshots averages of many widths are made and
scored on validation images (Karras et al., 2024, section 3,
https://arxiv.org/abs/2312.02696). The width is the standard deviation of the
age, as a share of all steps. Three averages tracked in the same training show
how right the curve is, and test images what the best width brings.

    KERAS_BACKEND=jax python examples/posthoc_ema.py --figure posthoc_ema.png

Needs `keras_wavg[plots]`, one backend, `swa_paper.py` beside it, and the data:
a folder with the four files of Debian's package dataset-fashion-mnist, or the
internet. Takes a minute or two on a CPU.
"""

# %%
import argparse
import tempfile
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy
from keras import layers
from swa_paper import load_data

from keras_wavg import PowerEMA, sweep, update_bn

TRACKED = 0.03, 0.14, 0.25
WIDTHS = (
    *(0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075, 0.09),
    *(0.105, 0.12, 0.14, 0.16, 0.19, 0.22, 0.25),
)
Data = tuple[numpy.ndarray, numpy.ndarray]


# %%
def split_data(folder: Path, images: int) -> tuple[Data, Data, Data]:
    """So many images for training, the next 10,000 to validate, and a test."""
    (x, y), test = load_data(folder, images + 10_000)
    return (x[:images], y[:images]), (x[images:], y[images:]), test


def build_model(optimizer: Any = None) -> keras.Model:
    """Three convolutions, 34,000 weights. Only training needs an optimizer."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for filters in (16, 32, 64):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


# %% [markdown]
# The one training. Two averages are enough for the snapshots: all others are
# sums of these. The three tracked ones are here only for comparison.


# %%
def train(training: Data, snapshots: Path, **sizes: int) -> dict[Any, Any]:
    """The raw weights after the training, and the tracked averages by width."""
    model = build_model(keras.optimizers.SGD(0.1, momentum=0.9))
    tracked = PowerEMA(TRACKED, swap=False, name="tracked")
    saved = PowerEMA((0.05, 0.1), snapshots=snapshots, swap=False)
    model.fit(*training, verbose=0, callbacks=[saved, tracked], **sizes)
    weights = {"raw": model.get_weights()}
    return weights | {width: tracked.get_weights(width) for width in TRACKED}


# %% [markdown]
# All weights are scored in the same way, in a model of their own, with
# statistics of `BatchNormalization` that are measured for them.


# %%
class Scorer:
    """Loss and accuracy in % of any weights."""

    def __init__(self, training: Data) -> None:
        self.model = build_model()
        self.images = training[0]

    def scores(self, weights: list[Any], data: Data) -> tuple[float, float]:
        """Of weights in the order of `model.get_weights()`."""
        self.model.set_weights(weights)
        update_bn(self.model, self.images, batch_size=500, verbose=0)
        loss, accuracy = self.model.evaluate(*data, batch_size=500, verbose=0)
        return loss, 100 * accuracy

    def read(self, path: Path) -> list[numpy.ndarray]:
        """The weights in a file."""
        self.model.load_weights(path)
        return self.model.get_weights()


def apart(made: list[Any], tracked: list[Any], raw: list[Any]) -> float:
    """The distance of two averages in % of that from the raw weights."""
    one, two, three = (
        numpy.concatenate([array.ravel() for array in weights])
        for weights in (made, tracked, raw)
    )
    norm = numpy.linalg.norm
    return 100 * float(norm(one - two) / norm(three - two))


# %% [markdown]
# `sweep` makes a file for each width and asks for its score.


# %%
def make(scorer: Scorer, data: Data, snapshots: Path) -> dict[float, Any]:
    """Weights and scores by width, made from the snapshots."""

    def score(path: Path) -> Any:
        weights = scorer.read(path)
        return weights, scorer.scores(weights, data)

    with tempfile.TemporaryDirectory() as folder:
        return sweep(sorted(snapshots.iterdir()), WIDTHS, score, folder)


# %%
def print_table(curve: Any, tracked: Any, distances: Any, best: float) -> None:
    """A row for each width, and what was tracked beside what was made."""
    print("      |  made afterwards  | tracked in training |  distance")
    print("width |   loss accuracy % |   loss   accuracy % | of both %")
    for width in curve:
        loss, accuracy = curve[width]
        row = f"{width:5.3f} | {loss:.4f} {accuracy:10.2f} |"
        if width in tracked:
            loss, accuracy = tracked[width]
            row += f" {loss:.4f} {accuracy:12.2f} | {distances[width]:9.2f}"
        print(f"{row:60}{'best' * (width == best)}".rstrip())
    print("  raw | {:.4f} {:10.2f} |".format(*tracked["raw"]))
    print("distance: 100 is that of the tracked average from the raw weights")


# %%
def draw(curve: Any, tracked: Any, best: float, path: Path) -> None:
    """Validation loss by width."""
    figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    ax.axhline(tracked["raw"][0], color="0.45", ls="--", label="raw weights")
    losses = [loss for loss, _ in curve.values()]
    made = {"color": "#0072B2", "label": "made from snapshots"}
    ax.plot(list(curve), losses, ".-", **made)
    points = [tracked[width][0] for width in TRACKED]
    hollow = {"mfc": "none", "mec": "#D55E00", "ms": 10, "mew": 1.5}
    ax.plot(TRACKED, points, "o", label="tracked in training", **hollow)
    lowest = {"color": "black", "ms": 9, "zorder": 3}
    ax.plot(best, curve[best][0], "*", label=f"best, {best:g}", **lowest)
    ax.set_xlabel(r"relative width of the average, $\sigma_{rel}$")
    ax.set_ylabel("validation loss")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# %%
def parsed() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=20_000)
    # Of fewer snapshots the narrowest and the widest cannot be made.
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train once, make the averages, compare them with the tracked ones."""
    options = parsed()
    keras.utils.set_random_seed(options.seed)
    training, validation, test = split_data(options.data, options.images)
    scorer = Scorer(training)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"batch_size": options.batch_size, "epochs": options.epochs}
        weights = train(training, Path(folder), **sizes)
        made = make(scorer, validation, Path(folder))

    tracked = {k: scorer.scores(w, validation) for k, w in weights.items()}
    curve = {width: scores for width, (_, scores) in made.items()}
    best = min(curve, key=curve.get)
    distances = {
        width: apart(made[width][0], weights[width], weights["raw"])
        for width in TRACKED
    }
    print(f"backend: {keras.config.backend()}; scores on validation images")
    print_table(curve, tracked, distances, best)
    choices = {"raw weights": weights["raw"], f"width {best:g}": made[best][0]}
    for name, chosen in choices.items():
        loss, accuracy = scorer.scores(chosen, test)
        print(f"test, {name}: loss {loss:.4f}, accuracy {accuracy:.2f} %")
    if options.figure:
        draw(curve, tracked, best, options.figure)


if __name__ == "__main__":
    main()
