"""Architectures that people train, at a size for tests, and data for them.

All of it is Keras' own: KerasHub's transformers would bring TensorFlow into
the environments of JAX and torch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy
from keras import layers, ops
from models import seeded

BATCH = 8
STEPS = 3
CLASSES = 10
IMAGE = (32, 32, 3)
VOCABULARY = 50
LENGTH = 12
WIDTH = 32
HEADS = 2


@dataclass(frozen=True)
class Architecture:
    """How to make a model and data for it.

    Args:
        build: Makes the model that is trained, always with the same weights.
        plain: Makes the network in which these weights are used afterwards.
        data: Makes inputs and targets for some batches, from a seed.
        suffix: Of the files of its training.
    """

    build: Callable[[], keras.Model]
    plain: Callable[[], keras.Model]
    data: Callable[[int, int], tuple[numpy.ndarray, numpy.ndarray]]
    suffix: str


def images(batches: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Noise, brighter the later the class."""
    rng = numpy.random.default_rng(seed)
    y = rng.integers(CLASSES, size=BATCH * batches)
    noise = rng.normal(scale=0.3, size=(len(y), *IMAGE))
    return (noise + y[:, None, None, None] / CLASSES).astype("float32"), y


def texts(batches: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Tokens that count upwards, and the next token of each."""
    rng = numpy.random.default_rng(seed)
    first = rng.integers(VOCABULARY, size=(BATCH * batches, 1))
    tokens = (first + numpy.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1].astype("int32"), tokens[:, 1:].astype("int32")


def resnet() -> keras.Model:
    """ResNet50V2."""
    return keras.applications.ResNet50V2(
        weights=None, input_shape=IMAGE, classes=CLASSES
    )


@seeded
def classifier() -> keras.Model:
    """ResNet50V2, compiled."""
    model = resnet()
    # XLA needs a minute for it on TensorFlow, and gains nothing on a CPU.
    jit = "auto" if keras.config.backend() == "jax" else False
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=jit,
    )
    return model


@keras.saving.register_keras_serializable("real_models")
class Embeddings(layers.Layer):
    """Of tokens and of their positions; the way back has the same matrix."""

    def build(self, shape: Any) -> None:
        self.token = layers.Embedding(VOCABULARY, WIDTH)
        self.position = layers.Embedding(LENGTH, WIDTH)
        self.token.build()
        self.position.build()

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        if reverse:
            return inputs @ ops.transpose(self.token.embeddings)
        return self.token(inputs) + self.position(ops.arange(LENGTH))

    def compute_output_spec(
        self, inputs: Any, reverse: bool = False
    ) -> keras.KerasTensor:
        width = VOCABULARY if reverse else WIDTH
        return keras.KerasTensor((*inputs.shape[:2], width))


def block(x: Any) -> Any:
    """A layer of a GPT-2."""
    attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
    normal = layers.LayerNormalization(epsilon=1e-5)(x)
    x += attention(normal, normal, use_causal_mask=True)
    normal = layers.LayerNormalization(epsilon=1e-5)(x)
    hidden = layers.Dense(4 * WIDTH, activation="gelu")(normal)
    return x + layers.Dense(WIDTH)(hidden)


def gpt() -> keras.Model:
    """GPT-2 with two layers."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    embeddings = Embeddings()
    x = block(block(embeddings(inputs)))
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(inputs, embeddings(x, reverse=True))


def adapt(model: keras.Model) -> None:
    """Freeze the model but for adapters of its queries and values."""
    for layer in model.layers:
        if not isinstance(layer, layers.MultiHeadAttention):
            layer.trainable = False
            continue
        layer.key_dense.trainable = layer.output_dense.trainable = False
        layer.query_dense.enable_lora(2)
        layer.value_dense.enable_lora(2)


def language_model(*, adapted: bool) -> keras.Model:
    """GPT-2, compiled to predict the next token."""
    model = gpt()
    if adapted:
        adapt(model)
    model.compile(
        keras.optimizers.AdamW(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


pretraining = seeded(functools.partial(language_model, adapted=False))
fine_tuning = seeded(functools.partial(language_model, adapted=True))

KINDS = {
    "resnet": Architecture(classifier, resnet, images, ".weights.h5"),
    "gpt": Architecture(pretraining, gpt, texts, ".keras"),
    "lora": Architecture(fine_tuning, gpt, texts, ".weights.h5"),
}
