"""Models that are as new in each test, but are traced only once.

TensorFlow takes longer to trace a training step than a short test to train.
"""

from collections.abc import Callable
from typing import Any

import keras
import models
import numpy
import probe


class Reused:
    """Returns the same compiled model in its initial state, at each call.

    A test must build another model if it needs two at a time, leaves `fit` by
    an exception, or changes more than values: what is trainable, or how the
    model is compiled.

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
        """The model, with its initial values and without averages."""
        if self._model is None:
            self._build_and_trace()
        probe.detach(self._model)
        for variable, value in self._values:
            # A copy: JAX may train in the memory that it is given.
            variable.assign(value.copy())
        keras.utils.set_random_seed(1)
        return self._model

    def _build_and_trace(self) -> None:
        # The previous test may have set another policy.
        keras.config.set_dtype_policy("float32")
        chosen = self._optimizer
        optimizer = chosen() if callable(chosen) else chosen
        model = models.fresh(self._build, optimizer=optimizer)
        self._values = [
            (v, numpy.array(keras.ops.convert_to_numpy(v.value)))
            for v in [*model.variables, *model.optimizer.variables]
        ]
        # Only the first `fit` shuffles an epoch once more, to read a batch.
        model.fit(*models.data(1), batch_size=models.BATCH, verbose=0)
        self._model = model


dense = Reused(models.dense)
batch_norm = Reused(models.batch_norm)
