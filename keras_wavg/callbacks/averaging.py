"""From the hooks of `fit` to updates of an average and swaps of the weights."""

import abc
import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import keras
import numpy

from keras_wavg.clock import StepClock
from keras_wavg.schedules import Schedule
from keras_wavg.shadow import Include, Shadow, raw_weights, shadow_in


class WeightAveraging(keras.callbacks.Callback, abc.ABC):
    """Averages the weights of a model while it trains. Abstract.

    In `fit` the average goes into the model when the last batch of an epoch has
    ended, or when validation begins, and stays until the next epoch begins: the
    weights that validation measures are those that `ModelCheckpoint` and
    `EarlyStopping` keep. After `fit` the model holds the average.

    Args:
        schedule: A `Schedule`.
        every: Integer, optimizer steps from one update to the next.
        start: Integer, the optimizer step from which samples count.
        swap: Boolean, whether the hooks put the average in the model.
        include: See `keras_wavg.shadow.Include`.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        every: int,
        start: int,
        swap: bool,
        include: Include,
    ) -> None:
        super().__init__()
        self.every = every
        self.start = start
        self.swap = swap
        self.include = include
        self._schedule = schedule
        self._trained: Any = None
        self._in_fit = False
        self._put_in_by_hook = False
        self._warned_of_skips = False
        self._thread = 0
        self._batches_in_epoch: int | None = None
        self._forget_average()

    # Without `fit`

    def set_model(self, model: Any) -> None:
        """Choose the model. `fit`, `evaluate` and `predict` do so themselves.

        In a loop of your own, call it once before the training.

        Args:
            model: A Keras model.
        """
        super().set_model(model)
        # `self.model` brings JAX's weights up to date, too dear at each batch.
        self._trained = self.model
        self._in_fit = False
        if getattr(model, "built", False):
            self._begin_if_due()

    @property
    def skipped(self) -> int:
        """Updates left out because a weight was NaN or infinite."""
        return 0 if self._shadow is None else self._shadow.skipped

    def get_weights(self) -> list[numpy.ndarray]:
        """The averaged weights.

        Returns:
            A list of NumPy arrays in the order of `model.get_weights()`, so
            that `model.set_weights(average.get_weights())` is the averaged
            model. Averages are float32, those of float64 weights float64. What
            is not averaged has the model's own value.

        Raises:
            ValueError: If there is no average yet.
        """
        self._require_model()
        shadow = self._average()
        if shadow is None:
            raise ValueError(
                "`get_weights()` needs an average, and there is none before "
                "the first update. Received: no update of this model so far, "
                f"with start={self.start} and every={self.every}. Train "
                "longer, or take `model.get_weights()`."
            )
        return shadow.get_weights()

    def update(self) -> None:
        """Tell that an optimizer step was made, in a loop without `fit`.

        Call it after every step, whatever `every` and `start` are.

        Raises:
            ValueError: If there is no model, or if it holds the average.
        """
        self._require_model()
        if self._shadow is not None and self._shadow.applied:
            raise ValueError(
                "`update()` needs the weights that are being trained. "
                "Received: a model that holds the average. Call `restore()` "
                "first."
            )
        self._follow_model()
        self._after_steps(self._clock.tick())

    def apply(self) -> None:
        """Put the average in the model, until `restore()`.

        Before the first update there is no average, and nothing happens.

        Raises:
            ValueError: If there is no model.
        """
        self._put_in()

    def restore(self) -> None:
        """Give the raw weights back to the model, bit for bit.

        Nothing happens if the average is not in the model.

        Raises:
            ValueError: If another average was put in on top of this one.
        """
        if self._shadow is not None and self._shadow.applied:
            self._shadow.restore()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model holds the average.

        Afterwards the model holds what it held before.

        Example:

        ```python
        with ema.applied():
            model.evaluate(x_test, y_test)
        ```

        Yields:
            `None`.

        Raises:
            ValueError: If there is no model.
        """
        put_in = self._put_in()
        try:
            yield
        finally:
            if put_in:
                self.restore()

    # The hooks of `fit`, `evaluate` and `predict`

    def on_train_begin(self, logs: Any = None) -> None:
        """Get the raw weights in place and get ready to count."""
        self._refuse_rivals()
        self._thread = threading.get_ident()
        self._batches_in_epoch = (self.params or {}).get("steps")
        self._follow_model()
        self._take_out()
        if self._shadow is not None and not self._shadow.bind():
            self._forget_average()
        self._begin_clock()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give the raw weights back."""
        self._in_fit = True
        self._take_out()
        self._clock.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Give the raw weights back, if something evaluated in mid-epoch."""
        self._in_fit = True
        if self._shadow is not None and self._shadow.applied:
            self._take_out()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the average."""
        self._refuse_another_thread()
        # At an epoch's last batch another callback's average may be in already.
        with raw_weights(self._trained):
            self._after_steps(self._clock.end_batches())
        if self._clock.epoch_is_over:
            self._swap_in()

    def on_test_begin(self, logs: Any = None) -> None:
        """Put the average in."""
        if not self._in_fit:
            self._refuse_rivals()
        put_in = self._swap_in()
        self._put_in_by_hook = put_in and not self._in_fit

    def on_test_end(self, logs: Any = None) -> None:
        """Give the raw weights back, unless `fit` needs the average longer."""
        if self._put_in_by_hook:
            self._put_in_by_hook = False
            self.restore()

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the average in, where no hook knew the last batch."""
        self._swap_in()
        self._warn_of_skips()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the model."""
        self._swap_in()
        self._in_fit = False
        if self._average() is None:
            warnings.warn(
                f"`{type(self).__name__}` made no average: `fit` ended after "
                f"{self._clock.now} optimizer steps. Received: "
                f"start={self.start}, every={self.every}. Lower them or train "
                "longer. The model keeps its raw weights.",
                stacklevel=2,
            )

    # The average and the model

    def _forget_average(self) -> None:
        self._shadow: Shadow | None = None
        self._clock = StepClock()
        self._pending = 0
        self._updated = False

    def _follow_model(self) -> None:
        if self._shadow is not None and self._shadow.model is not self._trained:
            self._forget_average()

    def _average(self) -> Shadow | None:
        shadow = self._shadow
        if shadow is None or shadow.model is not self.model:
            return None
        return shadow if shadow.exists else None

    def _put_in(self) -> bool:
        self._require_model()
        shadow = self._average()
        if shadow is None or shadow.is_held():
            return False
        shadow.apply()
        return True

    def _swap_in(self) -> bool:
        in_already = self._shadow is not None and self._shadow.applied
        if not self.swap or (self._in_fit and in_already):
            return False
        return self._put_in()

    def _take_out(self) -> None:
        # Also the average of another callback, left there by an earlier `fit`.
        while shadow := shadow_in(self.model):
            shadow.leave()
        if self._shadow is not None and self._shadow.replaced:
            self._forget_average()
            self._begin_clock()

    # Time

    def _begin_clock(self) -> None:
        self._clock.begin_fit(self.model, self._batches_in_epoch)
        self._begin_if_due()

    def _begin_if_due(self) -> None:
        now = self._clock.now
        if (
            self._schedule.starts_from_initial
            and now <= self.start < now + self._clock.steps_per_hook
        ):
            if not self._trained.built:
                self._refuse_an_unbuilt_model()
            self._follow_model()
            self._current_shadow().begin()

    def _after_steps(self, steps: int) -> None:
        counted = self._clock.now - self.start
        if counted <= 0:
            self._begin_if_due()
        self._pending = min(self._pending + steps, counted)
        if self._pending >= self.every:
            self._pending = 0
            self._update()

    def _update(self) -> None:
        if not self._updated:
            self._require_beginning()
            self._updated = True
        self._current_shadow().update(self._clock.reading())

    def _current_shadow(self) -> Shadow:
        if self._shadow is None:
            self._shadow = Shadow(
                self._trained, self._schedule, self.start, self.include
            )
        return self._shadow

    # Refusals and warnings

    def _require_model(self) -> None:
        if self._trained is None:
            raise ValueError(
                f"`{type(self).__name__}` needs a model. Received: none. Pass "
                "the callback to `fit`, or call `set_model(model)`."
            )

    def _require_beginning(self) -> None:
        if not self._schedule.starts_from_initial:
            return
        if self._shadow is None or not self._shadow.bind():
            self._refuse_an_unbuilt_model()

    def _refuse_an_unbuilt_model(self) -> NoReturn:
        raise ValueError(
            "An average that starts from the weights before training needs a "
            "model that is built by then. Received: a model without (all of) "
            "its weights. Give it an `Input`, or call it on data or "
            "`model.build(input_shape)` before `fit` or `set_model`, or "
            "average with `bias_correction=True`."
        )

    def _refuse_rivals(self) -> None:
        if self.params is None:
            return
        # Keras gives all callbacks of a list the same dict.
        averages = self.params.setdefault("averages", [])
        averages.append(self)
        swapping = [average for average in averages if average.swap]
        if len(swapping) > 1:
            raise ValueError(
                "At most one average can be swapped into the model. "
                "Received: "
                f"{len(swapping)} callbacks with `swap=True`: "
                f"{', '.join(type(average).__name__ for average in swapping)}. "
                "Pass `swap=False` to all but one."
            )

    def _refuse_another_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"`{type(self).__name__}` must be passed in a list: Keras "
                "calls a bare callback from other threads, while the next "
                "step is already changing the weights. Received: "
                "callbacks=<a bare callback>. Write "
                f"`callbacks=[{type(self).__name__}(...)]`."
            )

    def _warn_of_skips(self) -> None:
        if not self._warned_of_skips and (skipped := self.skipped):
            self._warned_of_skips = True
            warnings.warn(
                f"`{type(self).__name__}` left out {skipped} updates: "
                "the weights had become NaN or infinite. The average is of the "
                "steps before.",
                stacklevel=2,
            )
