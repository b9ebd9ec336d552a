"""From the hooks of `fit` to updates of an average and swaps of the weights."""

import abc
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy

from keras_wavg.atomic import replacing
from keras_wavg.backend import require_readable
from keras_wavg.callbacks import messages
from keras_wavg.callbacks.callback_list import calling_list, move_forward
from keras_wavg.plan import Plan
from keras_wavg.profile import ATTRIBUTE, Profile
from keras_wavg.running import RunningAverage
from keras_wavg.saveable import attach, is_attached, save_weights_alone
from keras_wavg.shadow import Shadow, raw_weights_back, weights_kept


class WeightAveraging(keras.callbacks.Callback, abc.ABC):
    """Averages the weights of a model while it trains. Abstract.

    In `fit` the average goes into the model when validation begins, or at the
    end of an epoch without, and stays until the next epoch begins: the weights
    that validation measures are those that `ModelCheckpoint` and
    `EarlyStopping` keep. After `fit` the model holds the average. The callback
    moves to the head of the list of callbacks, so that all others find the
    average up to date, in whatever order they are passed.

    The average travels in every file that Keras writes of the model, and goes
    on from it when the file is loaded again.

    Args:
        plan: A `Plan`.
        swap: Boolean, whether the hooks put the average in the model.
    """

    def __init__(self, plan: Plan, *, swap: bool) -> None:
        self.swap = swap
        self.name = plan.name
        self._plan = plan
        self._begin_without_a_model()

    def _begin_without_a_model(self) -> None:
        super().__init__()
        # One for each model, which holds it: its state travels in its files.
        self._averages: weakref.WeakKeyDictionary[Any, RunningAverage] = (
            weakref.WeakKeyDictionary()
        )
        self._running: Any = None
        self._in_fit = False
        # What calls the hooks of `fit`, and not those of another evaluation.
        self._list: Any = None
        # What evaluations that are going on found, by what calls their hooks.
        self._before: weakref.WeakKeyDictionary[Any, Any] = (
            weakref.WeakKeyDictionary()
        )
        self._warned_of_elements = False
        self._thread = 0
        # What the callback of which this is a copy had.
        self._copied: list[numpy.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: the arguments, and the average as arrays."""
        new = object.__new__(type(self))
        new._begin_without_a_model()
        state = {k: v for k, v in vars(self).items() if k not in vars(new)}
        has_average = self._copied is not None or self._average() is not None
        return state | {"_copied": self.get_weights() if has_average else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as a new callback does, with what `__getstate__` gave."""
        self._begin_without_a_model()
        self.__dict__.update(state)

    # Without `fit`

    def set_model(self, model: Any) -> None:
        """Choose the model. `fit`, `evaluate` and `predict` do so themselves.

        In a loop of your own, call it once before the training.

        Args:
            model: A Keras model.
        """
        super().set_model(model)
        self._in_fit = False
        # `self.model` is the one inside a wrapper of torch's.
        messages.refuse_lost_parameters(self.model)
        self._running = self._average_of(self.model)
        if self.model.built:
            self._running.begin_if_due()

    @property
    def skipped(self) -> list[str]:
        """Paths of the weights with elements that are NaN or infinite now.

        An element that is not finite is left out: its average is that of the
        steps at which it was finite. One that has been infinite from the
        beginning, as in a mask, is its own average and does not count.
        """
        shadow = self._average()
        return [] if shadow is None else shadow.paths_not_finite()

    def get_weights(self) -> list[numpy.ndarray]:
        """The averaged weights.

        Returns:
            A list of NumPy arrays in the order of `model.get_weights()`, so
            that `model.set_weights(average.get_weights())` is the averaged
            model. Averages are float32, those of float64 weights float64. What
            is not averaged has the model's own value. A copy of a callback, by
            `copy.deepcopy` or `pickle`, has no model, and gives the arrays that
            the callback had when it was copied.

        Raises:
            ValueError: If there is no average yet.
        """
        if self._running is None and self._copied is not None:
            return [array.copy() for array in self._copied]
        shadow = self._required_average()
        return shadow.get_weights(shadow.averages.read())

    def profile(self) -> Profile:
        """What the average is made of: the share of each past step.

        Samples count as evenly spaced, `every` steps or epochs apart.

        Returns:
            A `keras_wavg.Profile`.

        Raises:
            ValueError: If there is no average yet.
        """
        self._required_average()
        return self._plan.method.profile(*self._running.samples())

    def save_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Save the averaged weights, and nothing else, for use in any model.

        A plain weights file: no optimizer, no raw weights, no counts. What is
        not averaged is saved as it is. The model is left as it was, and the
        file appears whole or not at all. It carries the `profile()`, for
        `keras_wavg.synthesize`.

        Args:
            filepath: String or `pathlib.Path` that ends in `.weights.h5`. A
                file that is there is replaced.

        Example:

        ```python
        ema.save_weights("averaged.weights.h5")
        plain_model.load_weights("averaged.weights.h5")
        ```

        Raises:
            ValueError: If the file name ends otherwise, or if there is no
                average yet.
            FileNotFoundError: If the folder does not exist.
        """
        self._save(filepath, self.profile, self.applied)

    def update(self) -> None:
        """Tell that an optimizer step was made, in a loop without `fit`.

        Call it after every step, whatever `every` and `start` are; where these
        count epochs, at the end of every epoch.

        Raises:
            ValueError: If there is no model, if it holds the average or is not
                built by the time an average begins, or if another average of
                its name took its place.
        """
        self._require_model()
        if self._is_in_model():
            raise ValueError(
                "`update()` needs the weights that are being trained. "
                "Received: a model that holds the average. Call `restore()` "
                "first."
            )
        if not is_attached(self._running.model, self._running):
            messages.refuse_the_name(self.name)
        self._running.tick()

    def apply(self) -> None:
        """Put the average in the model, until `restore()`.

        Before the first update there is no average, and nothing happens.

        Raises:
            ValueError: If there is no model, or if it no longer has the weights
                that were averaged.
        """
        self._require_model()
        self._put_in()
        self._make_ready()

    def restore(self) -> None:
        """Give the raw weights back to the model, bit for bit.

        Nothing happens if no average is in the model. What somebody wrote to
        the weights since the average came in stays.

        Raises:
            ValueError: If the model no longer has the weights that were
                averaged.
        """
        if self._shadow is not None and self._shadow.model is not None:
            self._shadow.restore()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model holds the average.

        Afterwards the model holds what it held before: the raw weights, or
        another average. Contexts may be nested in any way. What somebody wrote
        to the weights in the context stays.

        Example:

        ```python
        with ema.applied():
            model.evaluate(x_test, y_test)
        ```

        Yields:
            `None`.

        Raises:
            ValueError: If there is no model, or if it no longer has the weights
                that were averaged.
        """
        self._require_model()
        shadow = self._average()
        if shadow is None:
            with weights_kept(self.model):
                yield
            return
        shadow.require_current()
        with shadow.applied():
            self._make_ready()
            yield

    def contexts(self) -> dict[str, Callable[[], Any]]:
        """The averages of this callback, each as what puts it in the model.

        Returns:
            Dict from a name to a function that returns a context, as
            `applied()` does.
        """
        return {self.name: self.applied}

    # The hooks of `fit`, `evaluate` and `predict`

    def on_train_begin(self, logs: Any = None) -> None:
        """Get the raw weights in place and get ready to count."""
        self._list = self._join_list()
        if self._list is not None:
            move_forward(self, self._list.callbacks, behind=self._is_behind)
        messages.warn_of_ema_of_keras(self)
        self._thread = threading.get_ident()
        self._take_out()
        self._running.begin_fit((self.params or {}).get("steps"))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give the raw weights back."""
        self._in_fit = True
        self._take_out()
        self._running.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Give the raw weights back, if an evaluation left the average in."""
        self._in_fit = True
        if self._shadow is not None and self._shadow.is_left_in():
            self._take_out()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the average."""
        messages.require_thread(self, self._thread)
        self._running.end_batch()

    def on_test_begin(self, logs: Any = None) -> None:
        """Put the average in."""
        caller = self._join_list()
        self._before.pop(caller or self, None)
        if self._is_of_fit(caller):
            self._running.end_epoch()
        elif self.swap and (shadow := self._average()) is not None:
            self._before[caller or self] = shadow, shadow.remembered()
        self._swap_in()
        self._make_ready()

    def on_test_end(self, logs: Any = None) -> None:
        """Give the raw weights back, unless `fit` needs the average longer."""
        found = self._before.pop(calling_list(self) or self, None)
        if found is not None:
            shadow, before = found
            shadow.put_back(before)

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the average in, if there was no validation."""
        self._running.end_epoch()
        self._swap_in()
        if not self._warned_of_elements and (paths := self.skipped):
            self._warned_of_elements = True
            messages.warn_of_elements(self, paths)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the model."""
        self._swap_in()
        self._make_ready()
        self._in_fit = False
        self._list = None
        if self._average() is None:
            messages.warn_of_no_average(self, self._running)
        self._running.end_fit()

    # The average and the model

    @property
    def _shadow(self) -> Shadow | None:
        return None if self._running is None else self._running.shadow

    def _average_of(self, model: Any) -> RunningAverage:
        if model not in self._averages:
            self._averages[model] = RunningAverage(model, self._plan)
        attach(model, self._averages[model])
        return self._averages[model]

    def _require_model(self) -> None:
        if self._running is None:
            messages.refuse_no_model(self)

    def _join_list(self) -> Any:
        """The list that calls the hooks, if others in it can be put up with."""
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
        """Whether another callback is to come first."""
        # Averages that are not swapped in are to find the raw weights.
        return self.swap and isinstance(other, WeightAveraging)

    def _is_in_model(self) -> bool:
        return self._shadow is not None and self._shadow.is_in_model()

    def _average(self) -> Shadow | None:
        # Reading `self.model` brings JAX's weights up to date, too dear at
        # each batch.
        _ = self.model
        shadow = self._shadow
        return shadow if shadow is not None and shadow.exists else None

    def _required_average(self) -> Shadow:
        self._require_model()
        shadow = self._average()
        if shadow is None:
            messages.refuse_no_average(self)
        shadow.require_current()
        return shadow

    def _put_in(self) -> None:
        shadow = self._average()
        if shadow is not None:
            shadow.require_current()
            if not shadow.is_in_model():
                shadow.apply()

    def _swap_in(self) -> None:
        if self.swap:
            self._put_in()

    def _take_out(self) -> None:
        # Also the average of another callback, left there by an earlier `fit`.
        if self.model.built:
            raw_weights_back(self.model)
        self._running.begin_anew_if_replaced()

    def _make_ready(self) -> None:
        """Is called before the average in the model is looked at."""

    def _save(
        self,
        filepath: str | os.PathLike[str],
        profile: Callable[[], Profile],
        applied: Callable[[], Any],
    ) -> None:
        if not str(filepath).endswith(".weights.h5"):
            raise ValueError(
                "The filename must end in `.weights.h5`. Received: "
                f"filepath={filepath}"
            )
        kept = {ATTRIBUTE: profile().to_json()}
        require_readable(self.model)
        with applied(), replacing(filepath) as written:
            save_weights_alone(self.model, written, kept)
