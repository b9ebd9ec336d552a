"""Train with few labels and a teacher, the average of the student's weights.

A small convolutional network learns scikit-learn's handwritten digits from ten
labels per class. The other training images have no labels: for these the loss
is the distance to the predictions of a teacher, a network whose weights are the
exponential moving average of the student's (Tarvainen and Valpola, 2017,
https://arxiv.org/abs/1703.01780). `EMA(target=teacher)` keeps the teacher up to
date after each step. The comparison is a training with the same steps on the
labels alone, with an average of its weights.

    KERAS_BACKEND=jax python examples/mean_teacher.py

Requires `keras_wavg`, scikit-learn and a backend. Takes about four minutes on a
CPU, for five seeds.
"""

# %%
import argparse
from typing import Any

import keras
import numpy
from digits import build_model, load_data
from keras import ops

from keras_wavg import EMA

LABELS_PER_CLASS = 10
BATCH = 50
STEPS_PER_EPOCH = 20
RAMP_UP = 300
"""Steps until the distance to the teacher has its full weight."""

# %% [markdown]
# A batch has as many images with labels as without. Images that have no label
# have the label -1. Each image is shifted by up to one pixel, differently for
# student and teacher.


# %%
class Batches(keras.utils.PyDataset):
    """Random batches, half of them images with labels.

    Args:
        images: Array of images.
        labels: Array of labels, -1 where there is none.
        seed: Integer.
    """

    def __init__(self, images: Any, labels: Any, seed: int) -> None:
        super().__init__()
        self.images, self.labels = images, labels
        self.parts = numpy.flatnonzero(labels >= 0), numpy.arange(len(labels))
        self.rng = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> Any:
        """Return a batch: two versions of each image, and the labels."""
        half = BATCH // 2
        rows = numpy.concatenate([self.rng.choice(p, half) for p in self.parts])
        labels = self.labels[rows]
        labels[half:] = -1
        views = [self.shifted(self.images[rows]) for _ in range(2)]
        return {"student": views[0], "teacher": views[1]}, labels

    def shifted(self, images: Any) -> Any:
        """Shift each image by up to one pixel."""
        padded = numpy.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = self.rng.integers(0, 3, (len(images), 2))
        pairs = zip(padded, corners, strict=True)
        return numpy.stack([p[i : i + 8, j : j + 8] for p, (i, j) in pairs])


# %% [markdown]
# The teacher is an attribute of the model and not trainable. The optimizer does
# not change it, and Keras saves it with the model.


# %%
class MeanTeacher(keras.Model):
    """A student, and a teacher that the student is to agree with.

    Args:
        weight: Float, the weight of the distance to the teacher's predictions.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.student, self.teacher = build_model(), build_model()
        self.teacher.trainable = False
        self.weight = weight
        self.step = self.add_weight(
            shape=(), dtype="int32", trainable=False, name="step"
        )
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's logits, also for an array of images."""
        images = inputs["student"] if isinstance(inputs, dict) else inputs
        return self.student(images, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Cross-entropy where there are labels, and distance to the teacher."""
        has_label = ops.cast(y >= 0, "float32")
        entropies = keras.losses.sparse_categorical_crossentropy(
            ops.maximum(y, 0), y_pred, from_logits=True
        )
        loss = ops.sum(has_label * entropies) / ops.sum(has_label)
        if not training or not self.weight:
            return loss
        target = ops.softmax(self.teacher(x["teacher"], training=False))
        error = ops.softmax(y_pred) - ops.stop_gradient(target)
        self.step.assign_add(1)
        ramp = ops.minimum(1.0, ops.cast(self.step, "float32") / RAMP_UP)
        return loss + self.weight * ramp * ops.mean(ops.square(error))


# %%
def hide_labels(labels: Any, seed: int) -> Any:
    """Return the labels with -1 for all but a few of each class."""
    rng = numpy.random.default_rng(seed)
    hidden = numpy.full(len(labels), -1, "int32")
    for digit in range(10):
        rows = numpy.flatnonzero(labels == digit)
        hidden[rng.choice(rows, LABELS_PER_CLASS, replace=False)] = digit
    return hidden


def train(weight: float, seed: int, data: Any, epochs: int) -> dict[str, float]:
    """Train, and return the accuracies on the test images in %."""
    x_train, x_test, y_train, y_test = data
    keras.utils.set_random_seed(seed)
    model = MeanTeacher(weight)
    model.compile(keras.optimizers.Adam(0.003))
    ema = EMA(0.99, target=model.teacher)
    batches = Batches(x_train, hide_labels(y_train, seed), seed)
    model.fit(batches, epochs=epochs, verbose=0, callbacks=[ema])

    def accuracy(network: keras.Model) -> float:
        predicted = network.predict(x_test, verbose=0).argmax(-1)
        return 100 * float(numpy.mean(predicted == y_test))

    average = accuracy(model.teacher)
    ema.restore()
    return {"student": accuracy(model.student), "average": average}


# %%
def main() -> None:
    """Compare trainings with and without a teacher, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--weight",
        type=float,
        default=10.0,
        help="of the distance to the teacher",
    )
    options = parser.parse_args()
    print(f"backend: {keras.config.backend()}, Keras {keras.__version__}")
    print("accuracy %  |  labels alone   |  with a teacher  ")
    print("seed        |   raw   average | student   teacher")
    rows = []
    for seed in range(options.seeds):
        both = [
            train(weight, seed, load_data(), options.epochs)
            for weight in (0.0, options.weight)
        ]
        rows.append([value for one in both for value in one.values()])
        print_row(str(seed), rows[-1])
    print_row("mean", list(numpy.mean(rows, axis=0)))


def print_row(name: str, values: list[float]) -> None:
    """Print the accuracies of a seed."""
    raw, average, student, teacher = (f"{value:.2f}" for value in values)
    print(f"{name:11} | {raw:>5}   {average:>7} | {student:>7}   {teacher:>7}")


if __name__ == "__main__":
    main()
