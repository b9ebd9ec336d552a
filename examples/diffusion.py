"""Average the weights of a diffusion model.

A small diffusion model learns to draw the clothes of Fashion-MNIST, scaled to
14 x 14 pixels, with a constant learning rate. Snapshots of two averages are
saved after each epoch. After training, averages of many widths are made from
them (Karras et al., 2024, https://arxiv.org/abs/2312.02696), and images are
sampled with each average and with the raw weights, from the same noise.

The score is the Frechet distance between sampled and real images, in the
features of a small classifier. The best width is chosen with validation images,
and reported with test images and other noise.

    KERAS_BACKEND=jax python examples/diffusion.py --figure diffusion.png

Requires `keras_wavg[plots]`, a backend, `posthoc_ema.py` and `swa_paper.py` in
the same directory, and the data: a directory with the four files of Debian's
package dataset-fashion-mnist, or an internet connection. Takes ten minutes of
CPU time.
"""

# %%
import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy
from keras import layers, ops
from posthoc_ema import split_data

from keras_wavg import PowerEMA, sweep

WIDTHS = 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.19, 0.25
RATE = 0.001  # the default of `Adam`
COLUMNS = 8
RAW, ANNEALED = "raw weights", "annealed"
Array = numpy.ndarray
Weights = list[numpy.ndarray]

# %% [markdown]
# A noisy image is `cos(angle) * image + sin(angle) * noise`, with an angle from
# 0 (no noise) to pi / 2 (only noise). The model predicts the image.


# %%
def shrink(data: tuple[Array, Array]) -> tuple[Array, Array]:
    """Scale images to 14 x 14 pixels, the means of four pixels each."""
    images, labels = data
    return images.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)), labels


class NoisyImages(keras.utils.PyDataset):
    """Batches of noisy images with their angles, and the images as targets.

    Args:
        images: Array of images.
        batch_size: Integer.
        seed: Integer, for the choice of images, the angles and the noise.
    """

    def __init__(self, images: Array, batch_size: int, seed: int) -> None:
        super().__init__()
        self.images, self.batch_size = images, batch_size
        self.random = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.images) // self.batch_size

    def __getitem__(self, index: int) -> Any:
        """Return the inputs and targets of a random batch."""
        images = self.random.choice(self.images, self.batch_size)
        angles = self.random.random((len(images), 1), "float32") * numpy.pi / 2
        noise = self.random.standard_normal(images.shape, "float32")
        scales = angles[..., None, None]
        noisy = numpy.cos(scales) * images + numpy.sin(scales) * noise
        return (noisy, angles), images


def build_model(units: int) -> keras.Model:
    """Build three residual blocks, each of two `Dense` layers."""
    noisy, angles = keras.Input((14, 14, 1)), keras.Input((1,))
    waves = ops.cos(angles * ops.arange(1, 17, dtype="float32"))
    level = layers.Dense(64, activation="silu")(waves)
    x = layers.Dense(units)(layers.Flatten()(noisy))
    for _ in range(3):
        y = layers.LayerNormalization()(x) + layers.Dense(units)(level)
        y = layers.Dense(units, activation="silu")(y)
        x += layers.Dense(units)(y)
    x = layers.Dense(14 * 14)(layers.LayerNormalization()(x))
    return keras.Model([noisy, angles], layers.Reshape((14, 14, 1))(x))


# %%
def train(
    seed: int,
    images: Array,
    rate: Any,
    options: argparse.Namespace,
    *callbacks: keras.callbacks.Callback,
) -> Weights:
    """Return the weights at the end of a training."""
    keras.utils.set_random_seed(seed)
    model = build_model(options.units)
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.fit(
        NoisyImages(images, options.batch_size, seed),
        epochs=options.epochs,
        verbose=0,
        callbacks=[*callbacks],
    )
    return model.get_weights()


# %% [markdown]
# Sampling turns noise into images. Each step predicts the image and the noise,
# and combines them with a smaller angle. This is DDIM (Song et al., 2021),
# which adds no noise on the way.


# %%
def sample(model: keras.Model, noise: Array, steps: int) -> Array:
    """Return the images that the model makes of noise."""
    angles = numpy.linspace(numpy.pi / 2, 0, steps + 1, dtype="float32")
    noisy = noise
    for angle, smaller in itertools.pairwise(angles):
        level = numpy.full((len(noise), 1), angle)
        images = model.predict((noisy, level), batch_size=500, verbose=0)
        noise = (noisy - numpy.cos(angle) * images) / numpy.sin(angle)
        noisy = numpy.cos(smaller) * images + numpy.sin(smaller) * noise
    return noisy


# %% [markdown]
# The Frechet distance compares mean and covariance of features. They come from
# a classifier of the same training images.


# %%
def train_classifier(training: tuple[Array, Array]) -> keras.Model:
    """Train a classifier, and return the model of its 32 features."""
    classifier = keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile("adam", loss)
    classifier.fit(*training, batch_size=128, epochs=5, verbose=0)
    return keras.Model(classifier.inputs, classifier.layers[-2].output)


def frechet_distance(first: Array, second: Array) -> float:
    """Return the distance of two sets of features."""
    means = first.mean(axis=0) - second.mean(axis=0)
    a, b = numpy.cov(first, rowvar=False), numpy.cov(second, rowvar=False)
    # The eigenvalues are real and not negative, up to rounding.
    eigenvalues = numpy.linalg.eigvals(a @ b).real
    root = numpy.sqrt(numpy.maximum(eigenvalues, 0)).sum()
    return float(means @ means + numpy.trace(a + b) - 2 * root)


class Scorer:
    """Samples with weights, and compares the images with real ones.

    Args:
        classifier: Model that computes features of images.
        real: Array of real images.
        noise: Array of noise, the start of each image.
        options: The units of the network, and the steps of sampling.
    """

    def __init__(
        self,
        classifier: keras.Model,
        real: Array,
        noise: Array,
        options: argparse.Namespace,
    ) -> None:
        self.classifier, self.noise = classifier, noise
        self.real = self.features(real)
        self.steps = options.sampling_steps
        self.model = build_model(options.units)

    def features(self, images: Array) -> Array:
        """Return the features of images."""
        return self.classifier.predict(images, batch_size=500, verbose=0)

    def distance(self, images: Array) -> float:
        """Return the Frechet distance of images from the real ones."""
        return frechet_distance(self.features(images), self.real)

    def sample(self, weights: Weights) -> Array:
        """Return the images that weights make of the noise."""
        self.model.set_weights(weights)
        return sample(self.model, self.noise, self.steps)

    def score(self, weights: Weights) -> float:
        """Return the distance of the images that weights make."""
        return self.distance(self.sample(weights))

    def read(self, path: Path) -> Weights:
        """Return the weights in a file."""
        self.model.load_weights(path)
        return self.model.get_weights()


# %% [markdown]
# Train with a constant learning rate, and make averages from the snapshots. A
# second training with an annealed learning rate shows what can be reached
# without an average.


# %%
def train_and_average(
    seed: int, images: Array, options: argparse.Namespace, scorer: Scorer
) -> tuple[Weights, dict[float, Weights]]:
    """Return the raw weights, and the averages by width."""
    with tempfile.TemporaryDirectory() as directory:
        snapshots, made = Path(directory, "snapshots"), Path(directory, "made")
        saver = PowerEMA((0.05, 0.1), snapshot_dir=snapshots, swap=False)
        raw = train(seed, images, RATE, options, saver)
        files = sorted(snapshots.iterdir())
        return raw, sweep(files, made, WIDTHS, scorer.read)


class Results(NamedTuple):
    """Frechet distances of one seed, and images made of the same noise."""

    widths: dict[float, float]  # averages, validation images
    others: dict[str, float]  # not averaged, validation images
    best: float  # the width with the lowest distance
    test: dict[str, float]
    samples: dict[str, Array]


def run(
    seed: int,
    images: Array,
    options: argparse.Namespace,
    validation: Scorer,
    test: Scorer,
) -> Results:
    """Train twice, choose a width, and report the distances."""
    raw, averages = train_and_average(seed, images, options, validation)
    steps = options.epochs * (len(images) // options.batch_size)
    cosine = keras.optimizers.schedules.CosineDecay(RATE, steps)
    annealed = train(seed, images, cosine, options)

    widths = {width: validation.score(w) for width, w in averages.items()}
    best = min(widths, key=lambda width: widths[width])
    compared = {
        RAW: raw,
        f"width {min(widths):g}": averages[min(widths)],
        "best width": averages[best],
        f"width {max(widths):g}": averages[max(widths)],
        ANNEALED: annealed,
    }
    others = {k: validation.score(compared[k]) for k in (RAW, ANNEALED)}
    samples = {name: test.sample(w) for name, w in compared.items()}
    distances = {name: test.distance(made) for name, made in samples.items()}
    return Results(widths, others, best, distances, samples)


# %%
def print_table(runs: list[Results], floor: float) -> None:
    """Print the test scores of each seed, and their mean."""
    print(f"backend: {keras.config.backend()}; Frechet distance, test images")
    print(" | ".join(["seed", *(f"{k:>11}" for k in runs[0].test), "best"]))
    for seed, results in enumerate(runs):
        cells = [f"{distance:11.3f}" for distance in results.test.values()]
        print(" | ".join([f"{seed:4}", *cells, f"{results.best:g}"]))
    means = numpy.mean([[*results.test.values()] for results in runs], axis=0)
    print(" | ".join(["mean", *(f"{mean:11.3f}" for mean in means)]))
    print(f"real validation images: {floor:.3f}")


# %%
def draw(runs: list[Results], path: Path) -> None:
    """Draw samples of the first seed, and the distances by width."""
    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2)
    draw_samples(left, runs[0].samples)
    draw_distances(right.subplots(), runs)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_samples(figure: Any, samples: dict[str, Array]) -> None:
    """Draw a row of images for each of the weights."""
    axes = figure.subplots(len(samples), squeeze=False)[:, 0]
    for ax, (name, images) in zip(axes, samples.items(), strict=True):
        row = numpy.concatenate(images[:COLUMNS, ..., 0], axis=1)
        # The range of the pixels of real images.
        ax.imshow(row, cmap="gray", vmin=-0.81, vmax=2.02)
        ax.set_yticks([6.5], [name])
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)


def draw_distances(ax: Any, runs: list[Results]) -> None:
    """Draw the distances from validation images, with a color per seed."""
    for seed, results in enumerate(runs):
        color = f"C{seed}"
        widths = results.widths
        ax.plot(list(widths), list(widths.values()), ".-", color=color)
        ax.plot(results.best, widths[results.best], "*", color=color, ms=11)
        ax.axhline(results.others[RAW], ls="--", color=color)
        ax.axhline(results.others[ANNEALED], ls=":", color=color)
    for style, label in {
        "--": "raw weights",
        ":": "annealed learning rate, no average",
        ".-": "averages made after training",
        "*": "best width",
    }.items():
        ax.plot([], [], style, color="0.3", label=label)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(
        r"relative width $\sigma_\mathrm{rel}$ of the average "
        r"(short $\leftarrow$   $\rightarrow$ long)"
    )
    ax.set_ylabel(r"Frechet distance  ($\leftarrow$ better)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, title="a color for each seed", loc=(0.2, 0.5))


# %%
def parse_options() -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    debian = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=debian)
    parser.add_argument("--images", type=int, default=10_000)
    # The shortest and longest averages need this many snapshots.
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--units", type=int, default=384)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train for each seed, print the table and draw the figure."""
    options = parse_options()
    data = split_data(options.data, options.images)
    training, validation, test = map(shrink, data)
    keras.utils.set_random_seed(0)
    classifier = train_classifier(training)
    shape = 2, options.samples, *training[0].shape[1:]
    noise = numpy.random.default_rng(0).standard_normal(shape, "float32")
    scorers = [
        Scorer(classifier, real, start, options)
        for real, start in zip((validation[0], test[0]), noise, strict=True)
    ]
    runs = []
    for seed in range(options.seeds):
        runs.append(run(seed, training[0], options, *scorers))
        print(f"seed {seed} done", flush=True)

    print_table(runs, scorers[1].distance(validation[0][: options.samples]))
    if options.figure:
        draw(runs, options.figure)


if __name__ == "__main__":
    main()
