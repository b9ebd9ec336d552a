"""Models that begin each test as if they were new, but are traced only once.

TensorFlow traces a model's training step in longer than a short test trains it.
"""

from collections.abc import Callable
from typing import Any

import keras
import models
import numpy
import probe


class Reused:
    """Gives a compiled model again and again as it was at first.

    There is one model, so a test that needs two at a time builds the other one
    itself, and so does a test that leaves `fit` by an exception or that changes
    more than values: what is trainable, how the model is compiled.

    Args:
        build: Function that returns a built model for `models.data`.
        optimizer: Name of an optimizer, or function that returns one.
    """

    def __init__(
        self, build: Callable[[], keras.Model], optimizer: Any = "sgd"
    ) -> None:
        self._build = build
        self._optimizer = optimizer
        self._model: Any = None
        self._values: list[tuple[Any, numpy.ndarray]] = []

    def __call__(self) -> Any:
        """The model, with the values that it was built with and no average."""
        if self._model is None:
            self._begin()
        probe.detach(self._model)
        for variable, value in self._values:
            # A copy: JAX may train in the memory that it is given.
            variable.assign(value.copy())
        keras.utils.set_random_seed(1)
        return self._model

    def _begin(self) -> None:
        # The test before may have left another one.
        keras.config.set_dtype_policy("float32")
        chosen = self._optimizer
        optimizer = chosen() if callable(chosen) else chosen
        model = models.fresh(self._build, optimizer=optimizer)
        self._values = [
            (v, numpy.array(keras.ops.convert_to_numpy(v.value)))
            for v in [*model.variables, *model.optimizer.variables]
        ]
        # The first `fit` alone has an epoch shuffled once more, to see a batch.
        model.fit(*models.data(1), batch_size=models.BATCH, verbose=0)
        self._model = model


dense = Reused(models.dense)
batch_norm = Reused(models.batch_norm)
