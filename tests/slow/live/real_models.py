"""Common architectures, small enough for tests, and data for them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras
import keras_hub
import numpy
from keras import ops
from models import seeded

BATCH = 8
STEPS = 2
CLASSES = 10
IMAGE = (32, 32, 3)
VOCABULARY = 50
LENGTH = 12


@dataclass(frozen=True)
class Architecture:
    """How to make a model and data for it.

    Args:
        build: Makes the model that is trained, always with the same weights.
        plain: Makes a model that is not compiled, for loading the weights.
        data: Makes inputs and targets for some batches, from a seed.
        suffix: Suffix of its checkpoint files.
    """

    build: Callable[[], keras.Model]
    plain: Callable[[], keras.Model]
    data: Callable[[int, int], tuple[numpy.ndarray, numpy.ndarray]]
    suffix: str


def images(batches: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Noise whose brightness increases with the class."""
    rng = numpy.random.default_rng(seed)
    y = rng.integers(CLASSES, size=BATCH * batches)
    noise = rng.normal(scale=0.3, size=(len(y), *IMAGE))
    return (noise + y[:, None, None, None] / CLASSES).astype("float32"), y


def texts(batches: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Tokens that count upward, and the next token of each."""
    rng = numpy.random.default_rng(seed)
    first = rng.integers(VOCABULARY, size=(BATCH * batches, 1))
    tokens = (first + numpy.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1].astype("int32"), tokens[:, 1:].astype("int32")


def resnet() -> keras.Model:
    """Blocks of ResNet50V2, two stacks of two: it compiles faster."""
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type="bottleneck_block",
        use_pre_activation=True,
        image_shape=IMAGE,
    )
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    outputs = keras.layers.Dense(CLASSES, activation="softmax")(pooled)
    return keras.Model(backbone.inputs, outputs)


@seeded
def classifier() -> keras.Model:
    """The ResNet, compiled."""
    model = resnet()
    # XLA takes a minute on TensorFlow, and gains nothing on a CPU.
    jit = "auto" if keras.config.backend() == "jax" else False
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=jit,
    )
    return model


def gpt2() -> tuple[keras.Model, keras.Model]:
    """GPT-2 with two layers: the language model, and its backbone."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=128,
        dropout=0,  # Keras does not save its seeds
        max_sequence_length=LENGTH,
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    inputs = {"token_ids": tokens, "padding_mask": ops.ones_like(tokens)}
    outputs = backbone.token_embedding(backbone(inputs), reverse=True)
    return keras.Model(tokens, outputs), backbone


def language_model(*, adapted: bool) -> keras.Model:
    """GPT-2, compiled to predict the next token."""
    model, backbone = gpt2()
    if adapted:
        backbone.enable_lora(2)
    model.compile(
        keras.optimizers.AdamW(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


pretraining = seeded(functools.partial(language_model, adapted=False))
fine_tuning = seeded(functools.partial(language_model, adapted=True))


def plain_gpt2() -> keras.Model:
    """GPT-2, not compiled."""
    return gpt2()[0]


KINDS = {
    "resnet": Architecture(classifier, resnet, images, ".weights.h5"),
    "gpt2": Architecture(pretraining, plain_gpt2, texts, ".keras"),
    "lora": Architecture(fine_tuning, plain_gpt2, texts, ".weights.h5"),
}
