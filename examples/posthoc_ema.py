"""Find the best length of an average after training.

The length of an average is usually chosen before training, and each choice
costs a training. Here a small convolutional network is trained once on
Fashion-MNIST with a constant learning rate, and two averages are saved after
each epoch. From these snapshots, averages of many widths are made and evaluated
on validation images (Karras et al., 2024, section 3,
https://arxiv.org/abs/2312.02696). The width is the standard deviation of the
age of the samples, divided by the number of steps. Three averages that are
tracked in the same training show the accuracy of the curve, and test images the
gain of the best width.

    KERAS_BACKEND=jax python examples/posthoc_ema.py --figure posthoc_ema.png

Requires `keras_wavg[plots]`, a backend, `swa_paper.py` in the same directory,
and the data: a directory with the four files of Debian's package
dataset-fashion-mnist, or an internet connection. Takes one to two minutes on a
CPU.
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
def split_data(directory: Path, images: int) -> tuple[Data, Data, Data]:
    """Load images for training, 10,000 for validation, and the test images."""
    (x, y), test = load_data(directory, images + 10_000)
    return (x[:images], y[:images]), (x[images:], y[images:]), test


def build_model(optimizer: Any = None) -> keras.Model:
    """Build three convolutions. Only training needs an optimizer."""
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
# Train once. Snapshots of two averages suffice: all others are weighted sums of
# these. The three tracked averages are only for comparison.


# %%
def train(training: Data, snapshots: Path, **sizes: int) -> dict[Any, Any]:
    """Return the raw weights, and the tracked averages by width."""
    model = build_model(keras.optimizers.SGD(0.1, momentum=0.9))
    tracked = PowerEMA(TRACKED, swap=False, name="tracked")
    saver = PowerEMA((0.05, 0.1), snapshot_dir=snapshots, swap=False)
    model.fit(*training, verbose=0, callbacks=[saver, tracked], **sizes)
    weights = {"raw": model.get_weights()}
    return weights | {width: tracked.get_weights(width) for width in TRACKED}


# %% [markdown]
# Evaluate all weights in the same way, in a separate model, with measured
# statistics of `BatchNormalization`.


# %%
class Scorer:
    """Computes loss and accuracy of weights.

    Args:
        training: Tuple of images and labels, to measure statistics with.
    """

    def __init__(self, training: Data) -> None:
        self.model = build_model()
        self.images = training[0]

    def scores(self, weights: list[Any], data: Data) -> tuple[float, float]:
        """Return loss, and accuracy in %, of `model.get_weights()`."""
        self.model.set_weights(weights)
        update_bn(self.model, self.images, batch_size=500, verbose=0)
        loss, accuracy = self.model.evaluate(*data, batch_size=500, verbose=0)
        return loss, 100 * accuracy

    def read(self, path: Path) -> list[numpy.ndarray]:
        """Return the weights in a file."""
        self.model.load_weights(path)
        return self.model.get_weights()


def distance(made: list[Any], tracked: list[Any], raw: list[Any]) -> float:
    """Return the distance of two averages, in % of that to the raw weights."""
    a, b, c = (
        numpy.concatenate([array.ravel() for array in weights])
        for weights in (made, tracked, raw)
    )
    norm = numpy.linalg.norm
    return 100 * float(norm(a - b) / norm(c - b))


# %% [markdown]
# `sweep` writes a file for each width and calls a function that evaluates it.


# %%
def make_averages(
    scorer: Scorer, data: Data, snapshots: Path
) -> dict[float, Any]:
    """Return weights and scores by width, made from the snapshots."""

    def score(path: Path) -> Any:
        weights = scorer.read(path)
        return weights, scorer.scores(weights, data)

    with tempfile.TemporaryDirectory() as directory:
        return sweep(sorted(snapshots.iterdir()), directory, WIDTHS, score)


# %%
def print_table(curve: Any, tracked: Any, distances: Any, best: float) -> None:
    """Print made and tracked averages, a row for each width."""
    print("      |  made afterwards  | tracked in training |")
    print("width |   loss accuracy % |   loss   accuracy % | distance %")
    for width in curve:
        loss, accuracy = curve[width]
        row = f"{width:5.3f} | {loss:.4f} {accuracy:10.2f} |"
        if width in tracked:
            loss, accuracy = tracked[width]
            row += f" {loss:.4f} {accuracy:12.2f} | {distances[width]:9.2f}"
        print(f"{row:60}{'best' * (width == best)}".rstrip())
    print("  raw | {:.4f} {:10.2f} |".format(*tracked["raw"]))
    print("distance of both averages; 100 % is that to the raw weights")


# %%
def draw(curve: Any, tracked: Any, best: float, path: Path) -> None:
    """Draw the validation loss by width."""
    figure, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    ax.axhline(
        tracked["raw"][0],
        color="0.45",
        ls="--",
        label="raw weights, no average",
    )
    losses = [loss for loss, _ in curve.values()]
    made = {"color": "#0072B2", "label": "averages made after training"}
    ax.plot(list(curve), losses, ".-", **made)
    points = [tracked[width][0] for width in TRACKED]
    hollow = {"mfc": "none", "mec": "#D55E00", "ms": 10, "mew": 1.5}
    ax.plot(
        TRACKED, points, "o", label="averages tracked in training", **hollow
    )
    lowest = {"color": "black", "ms": 9, "zorder": 3}
    ax.plot(best, curve[best][0], "*", label=f"best: width {best:g}", **lowest)
    ax.set_title("One training, averages of any width", fontsize="medium")
    ax.set_xlabel(
        r"relative width $\sigma_\mathrm{rel}$ of the average "
        r"(short $\leftarrow$   $\rightarrow$ long)"
    )
    ax.set_ylabel(r"validation loss  ($\leftarrow$ better)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# %%
def parse_options() -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=20_000)
    # The shortest and longest averages need this many snapshots.
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train once, make averages, and compare them with the tracked ones."""
    options = parse_options()
    keras.utils.set_random_seed(options.seed)
    training, validation, test = split_data(options.data, options.images)
    scorer = Scorer(training)
    with tempfile.TemporaryDirectory() as directory:
        sizes = {"batch_size": options.batch_size, "epochs": options.epochs}
        weights = train(training, Path(directory), **sizes)
        made = make_averages(scorer, validation, Path(directory))

    tracked = {k: scorer.scores(w, validation) for k, w in weights.items()}
    curve = {width: scores for width, (_, scores) in made.items()}
    best = min(curve, key=curve.get)
    distances = {
        width: distance(made[width][0], weights[width], weights["raw"])
        for width in TRACKED
    }
    print(f"backend: {keras.config.backend()}; scores on validation images")
    print_table(curve, tracked, distances, best)
    compared = {"raw weights": weights["raw"], f"width {best:g}": made[best][0]}
    for name, arrays in compared.items():
        loss, accuracy = scorer.scores(arrays, test)
        print(f"test, {name}: loss {loss:.4f}, accuracy {accuracy:.2f} %")
    if options.figure:
        draw(curve, tracked, best, options.figure)


if __name__ == "__main__":
    main()
