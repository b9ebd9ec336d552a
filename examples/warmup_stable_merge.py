"""Emulate the decay of the learning rate by averaging checkpoints.

Warmup, stable, merge (Tian et al., 2025, https://arxiv.org/abs/2507.17634): the
learning rate stays constant, and the last checkpoints are averaged with
coefficients that emulate a decay. So training can continue, and after each
epoch you know the result of a decay at that time. A small convolutional network
is trained on scikit-learn's handwritten digits, and Keras saves Orbax
checkpoints.

    KERAS_BACKEND=jax python examples/warmup_stable_merge.py

Requires `keras_wavg[orbax]`, orbax-checkpoint, scikit-learn, a backend, and
`digits.py` in the same directory. Takes a minute on a CPU.
"""

# %%
import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras
from digits import build_model, load_data

from keras_wavg import average_checkpoints, coefficients, select_checkpoints

WARMUP_STEPS, BATCH_SIZE = 20, 32
LEARNING_RATE = 0.003

# %% [markdown]
# The learning rate increases to its maximum and stays constant. For comparison,
# it can decay to zero at the end, as one minus the square root.


# %%
@keras.saving.register_keras_serializable("examples")
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Warmup, a constant learning rate, and a decay over the last steps."""

    def __init__(self, steps: int, decay_steps: int = 0) -> None:
        self.steps, self.decay_steps = steps, decay_steps

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of a step."""
        step = keras.ops.cast(step, "float32")
        rate = LEARNING_RATE * keras.ops.minimum(1.0, (step + 1) / WARMUP_STEPS)
        if self.decay_steps:
            start = self.steps - self.decay_steps
            t = keras.ops.maximum(0.0, step - start) / self.decay_steps
            rate *= 1 - keras.ops.sqrt(keras.ops.minimum(1.0, t))
        return rate

    def get_config(self) -> dict[str, int]:
        """Return the arguments, for `from_config`."""
        return {"steps": self.steps, "decay_steps": self.decay_steps}


def build_compiled(rate: WarmupStableDecay) -> keras.Model:
    """Build and compile a model, always with the same initial weights."""
    keras.utils.set_random_seed(0)
    network = build_model()
    # Keras loads weights from Orbax by path, and silently skips paths that are
    # missing. The paths of a `Sequential` differ from those of its clone.
    functional = keras.Model(network.inputs, network.outputs)
    return compile_model(keras.models.clone_model(functional), rate)


def compile_model(
    model: keras.Model, rate: WarmupStableDecay | float
) -> keras.Model:
    """Compile a model with a learning rate."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# At the end of each epoch, average the last checkpoints that Keras has written,
# and load the result into another model. Another process could do the same:
# `keras-wavg average run --last 8 --weights 1-sqrt -o mean`.


# %%
class Merge(keras.callbacks.Callback):
    """Evaluates the average of the last checkpoints during training.

    Args:
        run: Path, the directory of the checkpoints.
        count: Integer, the number of checkpoints to average.
        x: Validation images.
        y: Validation labels.
    """

    def __init__(self, run: Path, count: int, x: Any, y: Any) -> None:
        super().__init__()
        self.run, self.count, self.data = run, count, (x, y)
        self.losses = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Average the checkpoints, load the average and evaluate it."""
        output = self.run.with_name("mean")
        shutil.rmtree(output, ignore_errors=True)
        saved = len(list(self.run.iterdir()))
        selected = select_checkpoints(self.run, last=min(self.count, saved))
        weights = coefficients.decay_emulation(len(selected), "1-sqrt")
        average_checkpoints(selected, output, weights=weights)
        merged = compile_model(
            keras.models.clone_model(self.model), LEARNING_RATE
        )
        merged.load_weights(output)
        loss, accuracy = merged.evaluate(*self.data, verbose=0)
        self.losses.append(loss)
        raw = f"{logs['val_loss']:8.4f} {logs['val_accuracy']:9.4f}"
        print(f"{epoch + 1:5} {raw} {loss:8.4f} {accuracy:9.4f}")


# %%
def main() -> None:
    """Train with a constant rate, merge, and compare with a real decay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--last", type=int, default=8)
    options = parser.parse_args()
    x, x_val, y, y_val = load_data()
    steps_per_epoch = -(-len(x) // BATCH_SIZE)
    steps = options.epochs * steps_per_epoch
    save_steps = steps_per_epoch // 2

    print("         constant rate             merged")
    print("epoch     loss  accuracy     loss  accuracy")
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        merge = Merge(run, options.last, x_val, y_val)
        checkpoint = keras.callbacks.OrbaxCheckpoint(
            run,
            save_freq=save_steps,
            max_to_keep=options.last,
            save_on_background=False,
        )
        model = build_compiled(WarmupStableDecay(steps))
        fit = {
            "batch_size": BATCH_SIZE,
            "epochs": options.epochs,
            "verbose": 0,
            "validation_data": (x_val, y_val),
        }
        model.fit(x, y, callbacks=[checkpoint, merge], **fit)
    decayed = build_compiled(
        WarmupStableDecay(steps, decay_steps=save_steps * options.last)
    )
    decayed.fit(x, y, **fit)
    loss, accuracy = decayed.evaluate(x_val, y_val, verbose=0)
    print(f"real decay over the same steps: {loss:.4f} {accuracy:.4f}")
    print(f"merged, at the end: {merge.losses[-1]:.4f}")


# %%
if __name__ == "__main__":
    main()
