"""From the hooks of `fit` to updates of an average and swaps of the weights."""

import abc
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.atomic import replacing
from keras_wavg.callbacks import complaints, fellows
from keras_wavg.plan import Plan
from keras_wavg.profile import ATTRIBUTE, Profile
from keras_wavg.running import RunningAverage
from keras_wavg.saveable import (
    attach,
    is_attached,
    save_weights_alone,
)
from keras_wavg.shadow import Shadow, shadow_in


class WeightAveraging(keras.callbacks.Callback, abc.ABC):
    """Averages the weights of a model while it trains. Abstract.

    In `fit` the average goes into the model when the last batch of an epoch has
    ended, or when validation begins, and stays until the next epoch begins: the
    weights that validation measures are those that `ModelCheckpoint` and
    `EarlyStopping` keep. After `fit` the model holds the average.

    The average travels in every file that Keras writes of the model, and goes
    on from it when the file is loaded again.

    Args:
        plan: A `Plan`.
        swap: Boolean, whether the hooks put the average in the model.
    """

    def __init__(self, plan: Plan, *, swap: bool) -> None:
        super().__init__()
        self.swap = swap
        self.name = plan.name
        self._plan = plan
        # One for each model, which holds it: its state travels in its files.
        self._averages: weakref.WeakKeyDictionary[Any, RunningAverage] = (
            weakref.WeakKeyDictionary()
        )
        self._running: Any = None
        self._in_fit = False
        self._put_in_by_hook = False
        self._warned_of_skips = False
        self._thread = 0

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
        self._running = self._average_of(self.model)
        if self.model.built:
            self._running.begin_if_due()

    @property
    def skipped(self) -> int:
        """Updates left out because a weight was NaN or infinite."""
        return 0 if self._shadow is None else self._shadow.counters.skipped

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
        return self._profile_by(self._plan.profile)

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
            complaints.refuse_the_name(self.name)
        self._running.tick()

    def apply(self) -> None:
        """Put the average in the model, until `restore()`.

        Before the first update there is no average, and nothing happens.

        Raises:
            ValueError: If there is no model, or if another average was put in
                on top of this one.
        """
        self._put_in()
        self._make_ready()

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
            ValueError: If there is no model, or if another average was put in
                on top of this one.
        """
        put_in = self._put_in()
        try:
            self._make_ready()
            yield
        finally:
            if put_in:
                self.restore()

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
        complaints.refuse_rivals(self)
        self._thread = threading.get_ident()
        self._take_out()
        self._running.begin_fit((self.params or {}).get("steps"))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Give the raw weights back."""
        self._in_fit = True
        self._take_out()
        self._running.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Give the raw weights back, if something evaluated in mid-epoch."""
        self._in_fit = True
        if self._is_in_model():
            self._take_out()
        self._running.begin_batch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Update the average."""
        complaints.require_thread(self, self._thread)
        self._running.end_batch()
        if self._running.clock.epoch_is_over:
            self._swap_in()

    def on_test_begin(self, logs: Any = None) -> None:
        """Put the average in."""
        if self._in_fit:
            self._running.end_epoch_before_validation()
        else:
            complaints.refuse_rivals(self)
        put_in = self._swap_in()
        self._put_in_by_hook = put_in and not self._in_fit
        self._make_ready()

    def on_test_end(self, logs: Any = None) -> None:
        """Give the raw weights back, unless `fit` needs the average longer."""
        if self._put_in_by_hook:
            self._put_in_by_hook = False
            self.restore()
        if not self._in_fit:
            fellows.leave(self, fellows.AVERAGES)

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Put the average in, where no hook knew the last batch."""
        self._running.end_epoch()
        self._swap_in()
        if not self._warned_of_skips and self.skipped:
            self._warned_of_skips = True
            complaints.warn_of_skips(self)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the model."""
        self._swap_in()
        self._make_ready()
        self._in_fit = False
        if self._average() is None and not self.skipped:
            complaints.warn_of_no_average(self, self._running)
        self._running.end_fit()
        fellows.leave(self, fellows.AVERAGES)

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
            complaints.refuse_no_model(self)

    def _is_in_model(self) -> bool:
        return self._shadow is not None and self._shadow.applied

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
            complaints.refuse_no_average(self)
        return shadow

    def _put_in(self) -> bool:
        self._require_model()
        shadow = self._average()
        if shadow is None or shadow.is_held():
            return False
        shadow.apply()
        return True

    def _swap_in(self) -> bool:
        if not self.swap or (self._in_fit and self._is_in_model()):
            return False
        return self._put_in()

    def _take_out(self) -> None:
        # Also the average of another callback, left there by an earlier `fit`.
        while shadow := shadow_in(self.model):
            shadow.leave()
        self._running.begin_anew_if_replaced()

    def _make_ready(self) -> None:
        """Is called before the average in the model is looked at."""

    def _profile_by(
        self, profile_of: Callable[[Sequence[float], int], Profile]
    ) -> Profile:
        self._required_average()
        return profile_of(*self._running.samples())

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
        with applied(), replacing(filepath) as written:
            save_weights_alone(self.model, written, kept)
