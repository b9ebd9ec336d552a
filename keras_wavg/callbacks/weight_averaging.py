"""The base class of the averaging callbacks: the hooks of Keras."""

import threading
import weakref
from typing import Any

from keras_wavg.callbacks import messages
from keras_wavg.callbacks.callback_list import calling_list, move_forward
from keras_wavg.callbacks.manual_averaging import ManualAveraging
from keras_wavg.raw_weights import restore_raw_weights


class WeightAveraging(ManualAveraging):
    """Averages the weights of a model while it trains. Abstract.

    This is the base class of all averaging callbacks. Use it for `isinstance`
    and to implement an average with a schedule of your own, as below.

    In `fit` the average is swapped in when validation starts, or at the end of
    an epoch without validation, and stays in the model until the next epoch
    starts. So `ModelCheckpoint` and `EarlyStopping` save and compare the
    weights that validation measured. After `fit` the model holds the average.
    The callback moves to the head of the list of callbacks, so their order
    does not matter.

    Keras saves the state of the average with the model, and training resumes
    from it exactly.

    Args:
        method: A `keras_wavg.averages.base.Method`, such as `Scheduled`, which
            keeps one average on the device of the weights.
        sampling: A `keras_wavg.sampling.Sampling`, when a sample of the weights
            enters the average.
        overwriting: A `keras_wavg.sampling.Sampling`, when the average is
            written into the trained weights. Defaults to `None`, never.
        target: A Keras model or layer, or `None`. See `EMA`. Defaults to
            `None`.
        include: String, function or `None`. See `EMA`. Defaults to `None`,
            every weight.
        swap: Boolean, whether the hooks swap the average in. Defaults to
            `True`.
        name: String that identifies the average in a saved model. Defaults to
            the name of the class in snake case.
        batch_norm_data: Data or `None`. See `EMA`. Defaults to `None`.
        batch_norm_steps: Positive integer, in batches. See `EMA`. Defaults to
            `None`.

    Example:

    A schedule is a frozen dataclass that defines `coefficient`, here
    `(eta + 1) / (n + eta)` for the n-th step, as in the polynomial-decay
    average of Shamir and Zhang:

    >>> from dataclasses import dataclass
    >>> from keras_wavg import WeightAveraging
    >>> from keras_wavg.averages.scheduled import Scheduled
    >>> from keras_wavg.sampling import EverySteps
    >>> from keras_wavg.schedules import Schedule
    >>> @dataclass(frozen=True)
    ... class PolynomialDecay(Schedule):
    ...     eta: float
    ...     starts_from_initial = False
    ...     def coefficient(self, steps, interval, ops=None):
    ...         return (self.eta + 1) / (steps + self.eta)
    >>> class PolynomialAverage(WeightAveraging):
    ...     def __init__(self, eta=3.0, **options):
    ...         self.eta = eta
    ...         method = Scheduled((PolynomialDecay(eta),))
    ...         super().__init__(method, EverySteps(1), **options)
    >>> PolynomialAverage(8.0)
    <PolynomialAverage(eta=8.0, name='polynomial_average'): no model>

    Raises:
        ValueError: If an argument is out of its range.

    References:
        [Shamir and Zhang, 2013](https://arxiv.org/abs/1212.1824), for the
        schedule of the example
    """

    def _reset(self) -> None:
        super()._reset()
        self._in_fit = False
        # The list that calls the hooks of `fit`, not of another evaluation.
        self._list: Any = None
        # What the model held before each running evaluation, by its caller.
        self._before: weakref.WeakKeyDictionary[Any, Any] = (
            weakref.WeakKeyDictionary()
        )
        self._warned_of_elements = False
        self._thread = 0

    def set_model(self, model: Any) -> None:
        """Set the model. `fit`, `evaluate` and `predict` call this.

        In a custom training loop, call it once before training.

        Args:
            model: A Keras model.
        """
        self._in_fit = False
        super().set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the raw weights and prepare to count."""
        self._list = self._checked_list()
        if self._list is not None:
            move_forward(self, self._list.callbacks, behind=self._is_behind)
        messages.warn_of_ema_of_keras(self)
        self._thread = threading.get_ident()
        self._restore_raw()
        self._model_average.start_fit((self.params or {}).get("steps"))
        if self._statistics is not None and self.model.built:
            self._statistics.variables(self.model, self.include)
        messages.warn_of_buffers(self)
        messages.warn_of_constant_target(self)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restore the raw weights."""
        self._in_fit = True
        self._restore_raw()
        self._model_average.start_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Restore the raw weights, if an evaluation left the average in."""
        self._in_fit = True
        if self._averaged is not None and self._averaged.may_be_in_model():
            self._restore_raw()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the average."""
        messages.require_thread(self, self._thread)
        self._model_average.end_batch()

    def on_test_begin(self, logs: Any = None) -> None:
        """Swap the average in."""
        caller = self._checked_list()
        self._before.pop(caller or self, None)
        if self._is_of_fit(caller):
            self._model_average.end_epoch()
        elif self.swap and (averaged := self._average()) is not None:
            self._before[caller or self] = averaged, averaged.contents()
        self._swap_in_if_enabled()
        self._measure_if_needed()

    def on_test_end(self, logs: Any = None) -> None:
        """Restore the raw weights, except in `fit`."""
        found = self._before.pop(calling_list(self) or self, None)
        if found is not None:
            averaged, before = found
            averaged.restore_contents(before)

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Swap the average in, if there was no validation."""
        self._model_average.end_epoch()
        self._swap_in_if_enabled()
        if not self._warned_of_elements and (paths := self.skipped):
            self._warned_of_elements = True
            messages.warn_of_elements(self, paths)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the model."""
        self._swap_in_if_enabled()
        self._measure_if_needed()
        self._in_fit = False
        self._list = None
        if self._average() is None:
            messages.warn_of_no_average(self, self._model_average)
        self._model_average.end_fit()

    def _checked_list(self) -> Any:
        """The list that calls the hooks, after a check of its callbacks."""
        found = calling_list(self)
        if found is not None:
            messages.refuse_rivals(
                self,
                [c for c in found.callbacks if isinstance(c, WeightAveraging)],
            )
        return found

    def _is_of_fit(self, caller: Any) -> bool:
        return self._in_fit if caller is None else caller is self._list

    def _is_behind(self, other: Any) -> bool:
        """Whether another callback must come first."""
        # Averages that are not swapped in must see the raw weights.
        return self.swap and isinstance(other, WeightAveraging)

    def _swap_in_if_enabled(self) -> None:
        if self.swap:
            self._swap_in()

    def _restore_raw(self) -> None:
        # Also an average of another callback that an earlier `fit` left.
        if self.model.built:
            restore_raw_weights(self.model)
        self._model_average.restart_if_replaced()
