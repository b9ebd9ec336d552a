"""The scores of the raw weights and of each average, side by side."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_wavg import arguments, swapping
from keras_wavg.backend import (
    attach_weights,
    randomness_kept,
    weights_survive,
)
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.callbacks.callback_list import calling_list, move_forward


class AverageEvaluator(keras.callbacks.Callback):
    """Evaluates the raw weights and each average at the end of an epoch.

    The results go into the logs of the epoch, and so into `History`, as
    `raw_val_loss`, `ema_val_loss`, and so on: the `name` of the average (and
    the width of one of several in a `PowerEMA`), then what `validation_data`
    would have given. Any callback can monitor them, wherever it is in the list:
    the evaluator moves ahead of it. (Keras does not know of these
    names whether less is better: pass `mode="min"` or `mode="max"`.)

    What an epoch ends on is kept as if nobody had evaluated: weights, averages,
    metrics, random seeds. So `ModelCheckpoint` and `EarlyStopping` save and
    restore what the model holds: the average with `swap=True`, or the raw
    weights if there is none. Monitor the score of that one.

    Before its first update there is no average, and its score is that of the
    raw weights. (With NaN for a first value Keras' callbacks would find no
    later one better.)

    One evaluation takes as long as a validation. With `validation_data` the
    average with `swap=True` is evaluated twice. The compiled test function of
    the model serves all of them.

    Args:
        x: Inputs, what `model.evaluate` takes and that can be gone through
            again and again: arrays, a `keras.utils.PyDataset`, a
            `tf.data.Dataset` or a `torch.utils.data.DataLoader`.
        y: Targets, if they are not in `x`. Defaults to `None`.
        averages: List of averaging callbacks, such as `EMA` and `SWA`, which
            are in the `callbacks` of the same `fit`.
        sample_weight: See `model.evaluate`. Defaults to `None`.
        batch_size: See `model.evaluate`. Defaults to `None`.
        steps: See `model.evaluate`. Defaults to `None`.
        every: Positive integer, epochs from one evaluation to the next. The
            first epoch of a `fit` is always evaluated; in the epochs between
            the results are NaN. Defaults to `1`.
        name: String, what the data is called in the logs. Several evaluators
            of one `fit` need different ones. Defaults to `"val"`.

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
            `averages` are not averaging callbacks of different names, if an
            argument is out of its range. In `fit`, if an average is not in its
            `callbacks`, or if there is another evaluator of the same name.
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
        every: int = 1,
        name: str = "val",
    ) -> None:
        super().__init__()
        self.averages = _checked(averages)
        self.every = arguments.integer("every", every, at_least=1)
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

    def on_train_begin(self, logs: Any = None) -> None:
        """Move ahead of all callbacks but the averages."""
        self._keys = []
        found = calling_list(self)
        if found is not None:
            self._refuse_a_namesake(found.callbacks)
            self._refuse_missing_averages(found.callbacks)
            move_forward(self, found.callbacks, behind=_is_average)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Evaluate, and put the results into `logs`."""
        if self._keys and (epoch + 1) % self.every:
            results = dict.fromkeys(self._keys, math.nan)
        else:
            results = self._results()
            self._keys = list(results)
        if logs is not None:
            logs.update(results)

    def _results(self) -> dict[str, Any]:
        results = {}
        attach_weights(self.model)
        with (
            _undisturbed(self.model),
            swapping.holding_raw(self.model.weights),
        ):
            raw = self._evaluate()
            results["raw"] = raw
            for average in self.averages:
                exists = average._average() is not None
                for name, applied in average.contexts().items():
                    results[name] = raw
                    if exists:
                        with applied():
                            results[name] = self._evaluate()
        return {
            f"{whose}_{self.name}_{metric}": value
            for whose, metrics in results.items()
            for metric, value in metrics.items()
        }

    def _evaluate(self) -> Any:
        with weights_survive(self.model), warnings.catch_warnings():
            # Keras warns of any end of data whose length it did not know.
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
                f"Received: {_named(missing)}, which "
                f"{'is' if len(missing) == 1 else 'are'} not in them. Write "
                "`callbacks=[average, evaluator]`."
            )

    def _refuse_a_namesake(self, callbacks: Sequence[Any]) -> None:
        names = [c.name for c in callbacks if isinstance(c, AverageEvaluator)]
        if names.count(self.name) > 1:
            raise ValueError(
                "Several evaluators of one `fit` must have different names, "
                "by which the logs tell them apart. Received: several with "
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
    names = ["raw", *(n for average in averages for n in average.contexts())]
    if len(set(names)) < len(names):
        raise ValueError(
            "`averages` must have different names, by which the logs tell them "
            "apart, and none may be 'raw'. Received: "
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
    """Context after which metrics and random seeds are what they were."""
    weights = set(map(id, model.weights))
    variables = [
        variable
        for variable in (*model.variables, *model.metrics_variables)
        if id(variable) not in weights
    ]
    before = [keras.ops.copy(variable.value) for variable in variables]
    try:
        with randomness_kept():
            yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
