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

from keras_wavg import EMA

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
# In `fit`, validation measures the average. To see the raw weights beside it,
# this callback measures them before the average goes in.


# %%
class RawAccuracy(keras.callbacks.Callback):
    """Measures the raw weights after each epoch, and prints both scores."""

    def __init__(self, ema: EMA, x: Any, y: Any) -> None:
        super().__init__()
        self.ema, self.data = ema, (x, y)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Take the average out, measure, put it back."""
        self.ema.restore()
        _, raw = self.model.evaluate(*self.data, verbose=0)
        self.ema.apply()
        print(f"{epoch + 1:5}   {raw:12.4f}   {logs['val_accuracy']:16.4f}")


# %%
def main() -> None:
    """Train, compare, save and check."""
    keras.utils.set_random_seed(0)
    x_train, x_val, y_train, y_val = load_data()
    model = compile_model(build_model())
    # A horizon of 50 steps, of the 38 in an epoch; shorter while training is
    # young and the weights still travel far.
    ema = EMA(0.98, warmup=True)
    best = Path(tempfile.mkdtemp()) / "best.weights.h5"

    print(f"backend: {keras.config.backend()}")
    print("epoch   raw accuracy   average accuracy")
    history = model.fit(
        x_train,
        y_train,
        batch_size=32,
        epochs=EPOCHS,
        verbose=0,
        validation_data=(x_val, y_val),
        callbacks=[
            ema,
            RawAccuracy(ema, x_val, y_val),
            keras.callbacks.ModelCheckpoint(
                best,
                monitor="val_accuracy",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            ),
        ],
    )

    logged = max(history.history["val_accuracy"])
    deployed = build_model()
    deployed.load_weights(best)
    _, scored = compile_model(deployed).evaluate(x_val, y_val, verbose=0)
    print(f"best average, as logged in training: {logged:.4f}")
    print(f"the saved file, loaded into a new model: {scored:.4f}")
    if not math.isclose(logged, scored, rel_tol=1e-6):
        raise SystemExit("The file does not score what was logged.")


if __name__ == "__main__":
    main()
