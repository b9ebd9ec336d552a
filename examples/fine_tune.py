"""Pretrain and fine-tune a language model with averages.

A small GPT-2 of KerasHub is trained on the documentation strings of Python's
standard library, byte by byte, and then fine-tuned on those of NumPy: with LoRA
adapters, and with LoRA adapters on a model that was quantized to int8. A table
compares the losses of the raw weights and of the average, on modules that are
not in the training text. Checkpoints are averaged too, and the fine-tuned
average generates a text.

    KERAS_BACKEND=jax python examples/fine_tune.py

Requires `keras_wavg`, keras-hub, a backend, and TensorFlow or grain, which
KerasHub uses to feed arrays to a model. It runs on the three backends and needs
neither an internet connection nor tensorflow-text, because tokens are bytes.
Takes 5 minutes of CPU time on JAX.
"""

# %%
import argparse
import ast
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy

from keras_wavg import EMA, average_checkpoints, select_checkpoints

LENGTH, BATCH_SIZE = 64, 16
# Chosen by validation losses of seed 0: the decay from 0.95, 0.98 and 0.99, the
# learning rate of the adapters from 0.003, 0.01 and 0.03.
DECAY, LEARNING_RATE, ADAPTER_LEARNING_RATE = 0.95, 0.003, 0.03
RANK = 4
Data = tuple[dict[str, numpy.ndarray], numpy.ndarray]

# %% [markdown]
# The text is on every machine. A module is either for training, or for
# validation, or for test.


# %%
@dataclass(frozen=True)
class Text:
    """Rows of bytes for training, validation and test."""

    training: Data
    validation: Data
    test: Data


def docstrings(path: Path) -> Iterator[str]:
    """Yield the documentation strings of a Python file."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def read_rows(files: Iterable[Path]) -> numpy.ndarray:
    """Return the documentation of files, in rows of `LENGTH + 1` bytes."""
    text = "\n\n".join(text for file in files for text in docstrings(file))
    tokens = numpy.frombuffer(text.encode("ascii", "replace"), "uint8")
    rows = tokens.size // (LENGTH + 1)
    return tokens[: rows * (LENGTH + 1)].reshape(rows, -1).astype("int32")


def next_bytes(rows: numpy.ndarray) -> Data:
    """Return the inputs of a language model, and the next byte of each."""
    tokens = rows[:, :-1]
    mask = numpy.ones_like(tokens)
    return {"token_ids": tokens, "padding_mask": mask}, rows[:, 1:]


def load_text(files: Iterable[Path], steps: int, held_out: int) -> Text:
    """Load text for some steps, and `held_out` rows of other modules."""
    paths = sorted(files)
    # KerasHub does not shuffle arrays in `fit`.
    shuffle = numpy.random.default_rng(0).permutation
    validation, test = (shuffle(read_rows(paths[i::10])) for i in (0, 5))
    others = [path for i, path in enumerate(paths) if i % 10 not in {0, 5}]
    training = shuffle(read_rows(others))
    return Text(
        next_bytes(training[: steps * BATCH_SIZE]),
        next_bytes(validation[:held_out]),
        next_bytes(test[:held_out]),
    )


# %% [markdown]
# Without a preprocessor, a KerasHub task takes arrays of tokens.


# %%
def build_model() -> Any:
    """Build a GPT-2 with 112,000 weights."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=128,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        dropout=0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(
        backbone, preprocessor=None, compile=False
    )


def load_model(weights: Path) -> Any:
    """Build a model with saved weights."""
    model = build_model()
    model.load_weights(weights)
    return model


def compile_model(model: Any, learning_rate: float = LEARNING_RATE) -> Any:
    """Compile with a constant learning rate."""
    model.compile(
        keras.optimizers.Adam(learning_rate),
        weighted_metrics=[],
        sampler=keras_hub.samplers.TopKSampler(k=5, seed=0),
        # XLA takes a minute to compile on TensorFlow.
        jit_compile=keras.config.backend() == "jax",
    )
    return model


def train(model: Any, data: Data, *callbacks: Any) -> EMA:
    """Train for an epoch. Then the model holds the average."""
    ema = EMA(DECAY)
    model.fit(
        *data,
        batch_size=BATCH_SIZE,
        shuffle=False,
        verbose=0,
        callbacks=[ema, *callbacks],
    )
    return ema


def fine_tune(weights: Path, data: Data, *, quantized: bool) -> Any:
    """Train adapters of pretrained weights. Return model and average."""
    model = load_model(weights)
    if quantized:
        # In Keras 3.15 the gradient of an int8 embedding is wrong where the
        # language model uses it for its outputs.
        model.quantize("int8", filters=lambda x: x.name != "token_embedding")
    model.backbone.enable_lora(RANK)
    compile_model(model, ADAPTER_LEARNING_RATE)
    return model, train(model, data)


# %% [markdown]
# Losses are in nats per byte. A perplexity is their exponential.


# %%
def losses(model: Any, text: Text) -> numpy.ndarray:
    """Return the validation loss and the test loss."""
    options = {"batch_size": 4 * BATCH_SIZE, "verbose": 0}
    parts = text.validation, text.test
    return numpy.array([model.evaluate(*part, **options) for part in parts])


def compare(model: Any, ema: EMA, text: Text) -> list[numpy.ndarray]:
    """Return the losses of the raw weights and of the average."""
    average = losses(model, text)
    ema.restore()
    raw = losses(model, text)
    ema.apply()
    return [raw, average]


def generate(model: Any, prompt: str) -> str:
    """Continue a prompt up to `LENGTH` bytes."""
    tokens = numpy.zeros((1, LENGTH), "int32")
    tokens[0, : len(prompt)] = list(prompt.encode())
    inputs = {"token_ids": tokens, "padding_mask": tokens > 0}
    generated = model.generate(inputs, stop_token_ids=None)["token_ids"]
    return bytes(generated[0].tolist()).decode("ascii")


# %%
def run(library: Text, other: Text, directory: Path) -> tuple[Any, str]:
    """Pretrain and fine-tune once. Return losses by method, and a text."""
    checkpoints = directory / "checkpoints"
    save = keras.callbacks.ModelCheckpoint(
        checkpoints / "{batch:04d}.weights.h5",
        # In the middle of an epoch the model holds the raw weights.
        save_freq=max(1, len(library.training[1]) // BATCH_SIZE // 16),
        save_weights_only=True,
    )
    model = compile_model(build_model())
    ema = train(model, library.training, save)
    table = {
        "pretraining, `EMA`": compare(model, ema, library),
        "NumPy, not fine-tuned": compare(model, ema, other),
    }
    average, mean = (directory / f"{n}.weights.h5" for n in ("ema", "mean"))
    ema.save_weights(average)
    average_checkpoints(select_checkpoints(checkpoints, last=4), mean)
    merged = load_model(mean)
    raw = table["pretraining, `EMA`"][0]
    table["pretraining, last 4 checkpoints"] = [
        raw,
        losses(compile_model(merged), library),
    ]

    for method, quantized in (("LoRA", False), ("int8 and LoRA", True)):
        model, ema = fine_tune(average, other.training, quantized=quantized)
        table[f"NumPy, {method}, `EMA`"] = compare(model, ema, other)
    return table, generate(model, "Return the ")


def print_table(tables: list[dict[str, Any]]) -> None:
    """Print the losses of raw weights and average, a row for each method."""
    seeds = " | ".join(f"test, seed {seed}" for seed in range(len(tables)))
    print(
        f"| raw weights → average | validation, mean | {seeds} | test, mean |"
    )
    print("|---" * (len(tables) + 3) + "|")
    for method in tables[0]:
        scores = numpy.array([table[method] for table in tables])
        mean = scores.mean(axis=0)
        shown = mean[:, 0], *scores[:, :, 1], mean[:, 1]
        cells = (f"{raw:.4f} → {average:.4f}" for raw, average in shown)
        print(f"| {method} | {' | '.join(cells)} |")


# %%
def parse_options() -> argparse.Namespace:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--fine-tuning-steps", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=256, help="rows")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Pretrain and fine-tune with each seed, and print all losses."""
    options = parse_options()
    library = Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
    package = Path(numpy.__file__).parent.glob("*/*.py")
    texts = (
        load_text(library, options.steps, options.held_out),
        load_text(package, options.fine_tuning_steps, options.held_out),
    )
    tables = []
    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        with tempfile.TemporaryDirectory() as directory:
            table, text = run(*texts, Path(directory))
        tables.append(table)
    print(f"backend: {keras.config.backend()}; losses in nats per byte")
    print_table(tables)
    print(f"generated by the last average: {text!r}")


if __name__ == "__main__":
    main()
