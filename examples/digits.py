"""Train with an exponential moving average of the weights.

A small convolutional network is trained on scikit-learn's handwritten digits.
After each epoch, the validation accuracies of the raw weights and of the
average are printed. The best averaged weights are saved, and a new model that
loads them has the accuracy that was logged.

    KERAS_BACKEND=jax python examples/digits.py

Requires `keras_wavg`, scikit-learn and a backend. Takes seconds on a CPU.
"""

# %%
import math
import tempfile
from pathlib import Path
from typing import Any

import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_wavg import EMA, AverageEvaluator

EPOCHS = 15

# %% [markdown]
# 1,797 images of 8 x 8 pixels, a third of them for validation.


# %%
def load_data() -> tuple[Any, ...]:
    """Return training and validation images, then their labels."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    return train_test_split(
        images, digits.target, test_size=1 / 3, random_state=0
    )


def build_model() -> keras.Model:
    """Build a convolutional network with 22,000 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.BatchNormalization(momentum=0.9),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )


def compile_model(model: keras.Model) -> keras.Model:
    """Compile with a large learning rate.

    With a large learning rate and small batches the weights are noisy, so an
    average helps.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# The validation of `fit` measures the average. `AverageEvaluator` measures the
# raw weights too.


# %%
def print_accuracies(epoch: int, logs: Any) -> None:
    """Print the accuracies of raw weights and average after an epoch."""
    raw, average = logs["raw_val_accuracy"], logs["val_accuracy"]
    print(f"{epoch + 1:5}   {raw:12.4f}   {average:16.4f}")


def train(training: Any, validation: Any, best: Path) -> float:
    """Train, save the best average, and return its accuracy."""
    # The mean age is 49 steps; an epoch has 38. With `warmup` the average is
    # shorter at the start, while the weights change fast.
    ema = EMA(0.98, warmup=True)
    print("epoch   raw accuracy   average accuracy")
    history = compile_model(build_model()).fit(
        *training,
        batch_size=32,
        epochs=EPOCHS,
        verbose=0,
        validation_data=validation,
        callbacks=[
            ema,
            AverageEvaluator(*validation, averages=[ema]),
            keras.callbacks.LambdaCallback(on_epoch_end=print_accuracies),
            keras.callbacks.ModelCheckpoint(
                best,
                monitor="val_accuracy",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            ),
        ],
    )
    return max(history.history["val_accuracy"])


# %%
def main() -> None:
    """Train, save and load the best average, and compare."""
    keras.utils.set_random_seed(0)
    print(f"backend: {keras.config.backend()}")
    x_train, x_val, y_train, y_val = load_data()
    best = Path(tempfile.mkdtemp()) / "best.weights.h5"
    logged = train((x_train, y_train), (x_val, y_val), best)

    deployed = build_model()
    deployed.load_weights(best)
    _, loaded = compile_model(deployed).evaluate(x_val, y_val, verbose=0)
    print(f"best average, logged in training: {logged:.4f}")
    print(f"saved weights, loaded into a new model: {loaded:.4f}")
    if not math.isclose(logged, loaded, rel_tol=1e-6):
        raise SystemExit("The accuracy of the saved weights is not the logged.")


if __name__ == "__main__":
    main()
