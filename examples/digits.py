"""Better weights for free, on real images.

A small convolutional net learns scikit-learn's handwritten digits, with an
exponential moving average of its weights riding along. After each epoch the
validation accuracy of the raw weights stands beside that of the average; the
best averaged weights are saved, and the file scores what was logged.

    KERAS_BACKEND=jax python examples/digits.py

Needs `keras_wavg`, scikit-learn and one backend; takes seconds on a CPU.
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
# 1,797 images of 8 x 8 pixels, a third of them kept for validation.


# %%
def load_data() -> tuple[Any, ...]:
    """Training and validation images, then their labels."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[..., None]
    return train_test_split(
        images, digits.target, test_size=1 / 3, random_state=0
    )


def build_model() -> keras.Model:
    """A convolutional net of 22,000 weights."""
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
    """The model, compiled.

    With a large learning rate and small batches the weights are noisy, which
    is where an average helps.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# In `fit`, validation measures the average. The evaluator measures the raw
# weights beside it.


# %%
def show(epoch: int, logs: Any) -> None:
    """Print both accuracies of an epoch."""
    raw, average = logs["raw_val_accuracy"], logs["val_accuracy"]
    print(f"{epoch + 1:5}   {raw:12.4f}   {average:16.4f}")


def train(training: Any, validation: Any, best: Path) -> float:
    """Save the best average of a training, and tell its accuracy."""
    # A horizon of 50 steps; an epoch has 38. It is shorter while training is
    # young and the weights still travel far.
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
            keras.callbacks.LambdaCallback(on_epoch_end=show),
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
    """Train, compare, save and check."""
    keras.utils.set_random_seed(0)
    print(f"backend: {keras.config.backend()}")
    x_train, x_val, y_train, y_val = load_data()
    best = Path(tempfile.mkdtemp()) / "best.weights.h5"
    logged = train((x_train, y_train), (x_val, y_val), best)

    deployed = build_model()
    deployed.load_weights(best)
    _, scored = compile_model(deployed).evaluate(x_val, y_val, verbose=0)
    print(f"best average, as logged in training: {logged:.4f}")
    print(f"the saved file, loaded into a new model: {scored:.4f}")
    if not math.isclose(logged, scored, rel_tol=1e-6):
        raise SystemExit("The file does not score what was logged.")


if __name__ == "__main__":
    main()
