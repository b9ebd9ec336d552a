"""What a decay of the learning rate would bring, without one.

Warmup, stable, merge (Tian et al., 2025, https://arxiv.org/abs/2507.17634): the
learning rate stays constant, and the last checkpoints are averaged with the
coefficients of a decay. So the training can go on, and each epoch shows what
weights it would have if it ended now. A small convolutional net learns
scikit-learn's handwritten digits, and Keras saves Orbax checkpoints.

    KERAS_BACKEND=jax python examples/warmup_stable_merge.py

Needs `keras_wavg[orbax]`, orbax-checkpoint, scikit-learn, one backend and
`digits.py` beside it; takes a minute on a CPU.
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

WARMUP, BATCH = 20, 32
RATE = 0.003

# %% [markdown]
# The learning rate rises to its peak, and stays there. At the end of the second
# schedule it falls to zero as one minus the square root.


# %%
@keras.saving.register_keras_serializable("examples")
class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """Warm-up, a constant rate, and a decay over the last steps, if any."""

    def __init__(self, steps: int, decay_steps: int = 0) -> None:
        self.steps, self.decay_steps = steps, decay_steps

    def __call__(self, step: Any) -> Any:
        """The rate of a step."""
        step = keras.ops.cast(step, "float32")
        rate = RATE * keras.ops.minimum(1.0, (step + 1) / WARMUP)
        if self.decay_steps:
            begin = self.steps - self.decay_steps
            share = keras.ops.maximum(0.0, step - begin) / self.decay_steps
            rate *= 1 - keras.ops.sqrt(keras.ops.minimum(1.0, share))
        return rate

    def get_config(self) -> dict[str, int]:
        """For the file of the model."""
        return {"steps": self.steps, "decay_steps": self.decay_steps}


def compiled(rate: Rate) -> keras.Model:
    """The same net, from the same weights."""
    keras.utils.set_random_seed(0)
    net = build_model()
    # Keras finds weights in Orbax by their paths, and leaves out what it does
    # not find, without a word. A Sequential and its copy have other paths.
    model = keras.models.clone_model(keras.Model(net.inputs, net.outputs))
    return ready(model, rate)


def ready(model: keras.Model, rate: Rate | float) -> keras.Model:
    """Compile a model."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


# %% [markdown]
# The average of the last checkpoints is made at the end of each epoch, from the
# folders that Keras has written, and loaded in another model. Another process
# could do the same: `keras-wavg average run --last 8 --weights 1-sqrt -o mean`.


# %%
class Merge(keras.callbacks.Callback):
    """Scores the average of the last checkpoints while training goes on."""

    def __init__(self, run: Path, count: int, x: Any, y: Any) -> None:
        super().__init__()
        self.run, self.count, self.data = run, count, (x, y)
        self.losses = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Average, load and score."""
        output = self.run.with_name("mean")
        shutil.rmtree(output, ignore_errors=True)
        saved = len(list(self.run.iterdir()))
        chosen = select_checkpoints(self.run, last=min(self.count, saved))
        weights = coefficients.decay_emulation(len(chosen), "1-sqrt")
        average_checkpoints(chosen, output, weights=weights)
        other = ready(keras.models.clone_model(self.model), RATE)
        other.load_weights(output)
        loss, accuracy = other.evaluate(*self.data, verbose=0)
        self.losses.append(loss)
        raw = f"{logs['val_loss']:8.4f} {logs['val_accuracy']:9.4f}"
        print(f"{epoch + 1:5} {raw} {loss:8.4f} {accuracy:9.4f}")


# %%
def main() -> None:
    """Train at a constant rate, merge, and compare with a real decay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--last", type=int, default=8)
    options = parser.parse_args()
    x, x_val, y, y_val = load_data()
    per_epoch = -(-len(x) // BATCH)
    steps, every = options.epochs * per_epoch, per_epoch // 2

    print("         constant rate             merged")
    print("epoch     loss  accuracy     loss  accuracy")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        merge = Merge(run, options.last, x_val, y_val)
        checkpoint = keras.callbacks.OrbaxCheckpoint(
            run,
            save_freq=every,
            max_to_keep=options.last,
            save_on_background=False,
        )
        model = compiled(Rate(steps))
        fit = {
            "batch_size": BATCH,
            "epochs": options.epochs,
            "verbose": 0,
            "validation_data": (x_val, y_val),
        }
        model.fit(x, y, callbacks=[checkpoint, merge], **fit)
    decayed = compiled(Rate(steps, decay_steps=every * options.last))
    decayed.fit(x, y, **fit)
    loss, accuracy = decayed.evaluate(x_val, y_val, verbose=0)
    print(f"with a real decay of as many steps: {loss:.4f} {accuracy:.4f}")
    print(f"merged, in the end: {merge.losses[-1]:.4f}")


# %%
if __name__ == "__main__":
    main()
