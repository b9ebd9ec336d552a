"""Evaluation of the raw weights and of each average in `fit`."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_wavg import arguments, swapping
from keras_wavg.backend import (
    preserved_random_state,
    recovered_weights,
    sync_weights,
)
from keras_wavg.callbacks.callback_list import calling_list, move_forward
from keras_wavg.callbacks.weight_averaging import WeightAveraging


class AverageEvaluator(keras.callbacks.Callback):
    """Evaluates the raw weights and each average at the end of an epoch.

    The results are added to the logs of the epoch, and so to `History`, as
    `raw_val_loss`, `ema_val_loss` and so on: the `name` of the average (with
    the width, if a `PowerEMA` has several), then the name that a metric of
    `validation_data` would have. Any callback can monitor them, at any place in
    the list, because the evaluator moves ahead of it. Keras cannot infer from
    these names whether lower is better: pass `mode="min"` or `mode="max"`.

    Evaluation does not change weights, averages, metrics or random seeds. So
    `ModelCheckpoint` and `EarlyStopping` save and restore what the model
    holds: the average with `swap=True`, or the raw weights if no callback has
    it. Monitor the score of those weights.

    Before the first update of an average its score is that of the raw weights.
    (If the first value were NaN, Keras' callbacks would treat no later value as
    better.)

    Each evaluation takes as long as a validation. With `validation_data` the
    average with `swap=True` is evaluated twice. All evaluations use the
    compiled test function of the model.

    Args:
        x: Inputs that `model.evaluate` accepts and that can be iterated
            repeatedly: arrays, a `keras.utils.PyDataset`, a `tf.data.Dataset`
            or a `torch.utils.data.DataLoader`.
        y: Targets, unless `x` contains them. Defaults to `None`.
        averages: List of averaging callbacks, such as `EMA` and `SWA`, which
            are also in the `callbacks` of the same `fit`.
        sample_weight: Array, see `model.evaluate`. Defaults to `None`.
        batch_size: Positive integer, the size of the batches of arrays.
            Defaults to `None`, which is 32.
        steps: Positive integer, the number of batches. Defaults to `None`, all
            batches.
        every_epochs: Positive integer, the number of epochs between
            evaluations. The first epoch of a `fit` is always evaluated. In
            epochs without an evaluation the results are NaN. Defaults to `1`.
        name: String, the name of the data in the logs. Several evaluators in
            one `fit` must have different names. Defaults to `"val"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> ema = keras_wavg.EMA(0.9)
    >>> slow = keras_wavg.EMA(0.99, swap=False, name="slow")
    >>> evaluator = keras_wavg.AverageEvaluator(x, y, averages=[ema, slow])
    >>> history = model.fit(
    ...     x, y, epochs=2, verbose=0, callbacks=[ema, slow, evaluator]
    ... )
    >>> sorted(history.history)
    ['ema_val_loss', 'loss', 'raw_val_loss', 'slow_val_loss']

    Raises:
        ValueError: If `x`, `y` or `sample_weight` is an iterator, if
            `averages` are not averaging callbacks with different names, or if
            an argument is out of its range. In `fit`, if an average is not in
            its `callbacks`, or if another evaluator has the same name.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        averages: Sequence[WeightAveraging],
        sample_weight: Any = None,
        batch_size: int | None = None,
        steps: int | None = None,
        every_epochs: int = 1,
        name: str = "val",
    ) -> None:
        super().__init__()
        self.averages = _checked(averages)
        self.every_epochs = arguments.integer(
            "every_epochs", every_epochs, at_least=1
        )
        self.name = arguments.name(name, "val")
        self._data = {
            "x": arguments.repeatable("x", x),
            "y": arguments.repeatable("y", y),
            "sample_weight": arguments.repeatable(
                "sample_weight", sample_weight
            ),
            "batch_size": arguments.integer_or_none(
                "batch_size", batch_size, at_least=1
            ),
            "steps": arguments.integer_or_none("steps", steps, at_least=1),
        }
        self._keys: list[str] = []

    def __repr__(self) -> str:
        return (
            f"AverageEvaluator(averages={[a.name for a in self.averages]}, "
            f"every_epochs={self.every_epochs}, name={self.name!r})"
        )

    def on_train_begin(self, logs: Any = None) -> None:
        """Move ahead of all callbacks except the averages."""
        self._keys = []
        found = calling_list(self)
        if found is not None:
            self._refuse_equal_names(found.callbacks)
            self._refuse_missing_averages(found.callbacks)
            move_forward(self, found.callbacks, behind=_is_average)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Evaluate, and add the results to `logs`."""
        if self._keys and (epoch + 1) % self.every_epochs:
            results = dict.fromkeys(self._keys, math.nan)
        else:
            results = self._results()
            self._keys = list(results)
        if logs is not None:
            logs.update(results)

    def _results(self) -> dict[str, Any]:
        results = {}
        sync_weights(self.model)
        with (
            _undisturbed(self.model),
            swapping.raw_swapped_in(self.model.weights),
        ):
            raw = self._evaluate()
            results["raw"] = raw
            for average in self.averages:
                exists = average._average() is not None
                for name, applied in average._contexts().items():
                    results[name] = raw
                    if exists:
                        with applied():
                            results[name] = self._evaluate()
        return {
            f"{name}_{self.name}_{metric}": value
            for name, metrics in results.items()
            for metric, value in metrics.items()
        }

    def _evaluate(self) -> Any:
        with recovered_weights(self.model), warnings.catch_warnings():
            # Keras warns at the end of all data of unknown length.
            if self._data["steps"] is None:
                warnings.filterwarnings("ignore", "Your input ran out of data")
            return self.model.evaluate(
                **self._data, verbose=0, return_dict=True
            )

    def _refuse_missing_averages(self, callbacks: Sequence[Any]) -> None:
        missing = [
            average
            for average in self.averages
            if not any(average is other for other in callbacks)
        ]
        if missing:
            raise ValueError(
                "`averages` must be in the `callbacks` of the same `fit`. "
                f"Received: {_named(missing)}, not in `callbacks`. Write "
                "`callbacks=[average, evaluator]`."
            )

    def _refuse_equal_names(self, callbacks: Sequence[Any]) -> None:
        names = [c.name for c in callbacks if isinstance(c, AverageEvaluator)]
        if names.count(self.name) > 1:
            raise ValueError(
                "Several evaluators in one `fit` must have different names, "
                "which identify them in the logs. Received: several with "
                f"name='{self.name}'. Pass `name=` to each."
            )


def _checked(averages: Any) -> list[WeightAveraging]:
    if not isinstance(averages, (list, tuple)) or not averages:
        raise ValueError(
            "`averages` must be a list of at least one averaging callback, "
            f"such as `EMA`. Received: averages={averages!r}"
        )
    others = [a for a in averages if not isinstance(a, WeightAveraging)]
    if others:
        raise ValueError(
            "`averages` must be averaging callbacks, such as `EMA`. "
            f"Received: {others[0]!r}"
        )
    names = ["raw", *(n for average in averages for n in average._contexts())]
    if len(set(names)) < len(names):
        raise ValueError(
            "`averages` must have different names, which identify them in the "
            "logs, and none may be 'raw'. Received: "
            f"{_named(averages)}. Pass `name=` to each."
        )
    return list(averages)


def _named(averages: Sequence[WeightAveraging]) -> str:
    return ", ".join(
        f"{type(average).__name__}(name='{average.name}')"
        for average in averages
    )


def _is_average(callback: Any) -> bool:
    return isinstance(callback, WeightAveraging)


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Context that does not change metrics and random seeds."""
    weights = set(map(id, model.weights))
    variables = [
        variable
        for variable in (*model.variables, *model.metrics_variables)
        if id(variable) not in weights
    ]
    before = [keras.ops.copy(variable.value) for variable in variables]
    try:
        with preserved_random_state():
            yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
