"""The average of a model, updated and swapped by the caller."""

import abc
import contextlib
import os
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import keras
import numpy

from keras_wavg import arguments, swapping
from keras_wavg.arguments import Include
from keras_wavg.atomic import replacing
from keras_wavg.averaged_weights import AveragedWeights
from keras_wavg.averages.base import Method
from keras_wavg.backend import require_readable
from keras_wavg.callbacks import messages
from keras_wavg.callbacks.statistics import MeasuredStatistics
from keras_wavg.model_average import ModelAverage
from keras_wavg.plan import Plan
from keras_wavg.profile import ATTRIBUTE, Profile
from keras_wavg.raw_weights import preserved_weights
from keras_wavg.representation import settings
from keras_wavg.sampling import Sampling
from keras_wavg.saving import attach, is_attached, save_weights_alone
from keras_wavg.target import require_layer


class AveragingOptions(TypedDict, total=False):
    """The keyword arguments of all averaging callbacks. See `EMA`."""

    include: Include
    swap: bool
    name: str | None
    batch_norm_data: Any
    batch_norm_steps: int | None


class ManualAveraging(keras.callbacks.Callback, abc.ABC):
    """Reads, swaps and saves the average of a model, without `fit`. Abstract.

    Args: See `WeightAveraging`.
    """

    def __init__(
        self,
        method: Method,
        sampling: Sampling,
        *,
        overwriting: Sampling | None = None,
        target: Any = None,
        include: Include = None,
        swap: bool = True,
        name: str | None = None,
        batch_norm_data: Any = None,
        batch_norm_steps: int | None = None,
    ) -> None:
        self.include = arguments.include(include)
        self.swap = swap
        self.name = arguments.name(name, _snake_case(type(self).__name__))
        self.batch_norm_data = batch_norm_data
        self.batch_norm_steps = arguments.batch_norm_steps(
            batch_norm_data, batch_norm_steps
        )
        self._statistics = (
            None
            if batch_norm_data is None
            else MeasuredStatistics(batch_norm_data, self.batch_norm_steps)
        )
        self.target = require_layer(target)
        self._plan = Plan(
            self.name, method, sampling, self.include, overwriting, target
        )
        self._reset()

    def _reset(self) -> None:
        """Set all attributes that a copy does not share."""
        super().__init__()
        # One for each model, which holds it, so that Keras saves its state.
        self._averages: weakref.WeakKeyDictionary[Any, ModelAverage] = (
            weakref.WeakKeyDictionary()
        )
        self._current: ModelAverage | None = None
        # The average of the callback that this one is a copy of.
        self._copied: list[numpy.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy: the arguments, the average as arrays."""
        messages.refuse_to_copy_a_target(self)
        new = object.__new__(type(self))
        new._reset()
        state = {k: v for k, v in vars(self).items() if k not in vars(new)}
        has_average = self._copied is not None or self._average() is not None
        return state | {"_copied": self.get_weights() if has_average else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start as a new callback, with the state of `__getstate__`."""
        self._reset()
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"<{settings(self)}: {self._state()}>"

    def _state(self) -> str:
        if self._current is None or self._current.model is None:
            copied = "no model, with the average of the callback it copies"
            return "no model" if self._copied is None else copied
        averaged = self._average()
        if averaged is None:
            return "no average yet"
        counted = (
            "samples" if self._plan.method.counts_samples else "optimizer steps"
        )
        owners = swapping.owners(self.model.weights)
        place = ", in the model" if averaged in owners else ""
        return f"average of {averaged.steps} {counted}{place}"

    def set_model(self, model: Any) -> None:
        """Set the model. `fit`, `evaluate` and `predict` call this.

        In a custom training loop, call it once before training.

        Args:
            model: A Keras model.
        """
        super().set_model(model)
        # `self.model` is the Keras model inside a torch wrapper.
        messages.refuse_lost_parameters(self.model)
        self._current = self._average_of(self.model)
        if self.model.built:
            self._current.start_if_due()

    @property
    def skipped(self) -> list[str]:
        """Paths of the weights that have NaN or infinite elements now.

        Such elements are not averaged: their average is that of the steps at
        which they were finite. Elements that have been infinite since training
        started, as in a mask, are not reported.
        """
        averaged = self._average()
        return [] if averaged is None else averaged.paths_not_finite()

    def get_weights(self) -> list[numpy.ndarray]:
        """Return the averaged weights.

        Excluded weights have the values that the model holds. With
        `batch_norm_data` the statistics are measured first.

        Returns:
            A list of NumPy arrays in the order of `model.get_weights()`, so
            that `model.set_weights(average.get_weights())` makes an averaged
            model. Averages are float32, or float64 for float64 weights. A
            copy made with `copy.deepcopy` or `pickle` has no model and returns
            the arrays that the callback had when it was copied.

        Raises:
            ValueError: If there is no average yet.
        """
        if self._current is None and self._copied is not None:
            return [array.copy() for array in self._copied]
        averaged = self._required_average()
        if self._statistics is not None:
            with self.applied():
                pass  # measures
        return averaged.get_weights(averaged.averages.read())

    def profile(self) -> Profile:
        """Return the coefficient of each past step in the average.

        Samples are assumed to be evenly spaced.

        Returns:
            A `keras_wavg.Profile`.

        Raises:
            ValueError: If there is no average yet.
        """
        self._required_average()
        return self._plan.method.profile(*self._model_average.samples())

    def save_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Save only the averaged weights, for use in any model.

        The file is a plain weights file without an optimizer, raw weights or
        state. Excluded weights are saved as they are. The model is not
        changed, and the file is written atomically. It contains the
        `profile()`, for `keras_wavg.synthesize`.

        Args:
            filepath: String or `pathlib.Path` that ends in `.weights.h5`. An
                existing file is replaced.

        Example:

        ```python
        ema.save_weights("averaged.weights.h5")
        plain_model.load_weights("averaged.weights.h5")
        ```

        Raises:
            ValueError: If the file name has another ending, or if there is no
                average yet.
            FileNotFoundError: If the directory does not exist.
        """
        self._save(filepath, self.profile, self.applied)

    def update(self) -> None:
        """Count an optimizer step in a custom training loop.

        Call it after every optimizer step, whatever the interval of the
        updates is. If the interval is in epochs, call it at the end of every
        epoch.

        Raises:
            ValueError: If there is no model, if the model holds the average,
                if it is not built when an average starts, or if another
                callback has taken the name of this average.
        """
        current = self._model_average
        if self._is_in_model():
            raise ValueError(
                "`update()` needs a model that holds its raw weights. "
                "Received: a model that holds the average. Call `restore()` "
                "first."
            )
        if not is_attached(current.model, current):
            messages.refuse_the_name(self.name)
        current.tick()

    def apply(self) -> None:
        """Swap the average in, until `restore()`.

        Does nothing before the first update.

        Raises:
            ValueError: If there is no model, or if its weights are no longer
                those that were averaged.
        """
        messages.require_model(self, self._current)
        self._swap_in()
        self._measure_if_needed()

    def restore(self) -> None:
        """Restore the raw weights, bit for bit.

        Does nothing if the model does not hold an average. Weights that were
        changed while the average was in the model are not restored.

        Raises:
            ValueError: If the weights of the model are no longer those that
                were averaged.
        """
        if self._averaged is not None and self._averaged.model is not None:
            self._averaged.restore()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model holds the average.

        On exit the model holds what it held on entry: the raw weights, or
        another average. Contexts can be nested. Weights that are changed in
        the context are not restored.

        Example:

        ```python
        with ema.applied():
            model.evaluate(x_test, y_test)
        ```

        Yields:
            `None`.

        Raises:
            ValueError: If there is no model, or if its weights are no longer
                those that were averaged.
        """
        messages.require_model(self, self._current)
        averaged = self._average()
        if averaged is None:
            with preserved_weights(self.model):
                yield
            return
        averaged.require_current()
        with averaged.applied():
            self._measure_if_needed()
            yield

    def _contexts(self) -> dict[str, Callable[[], Any]]:
        """Each average of this callback: its name, and its context."""
        return {self.name: self.applied}

    # The average and the model

    @property
    def _averaged(self) -> AveragedWeights | None:
        return None if self._current is None else self._current.averaged

    @property
    def _model_average(self) -> ModelAverage:
        return messages.require_model(self, self._current)

    def _average_of(self, model: Any) -> ModelAverage:
        if model not in self._averages:
            self._averages[model] = ModelAverage(model, self._plan)
        attach(model, self._averages[model])
        return self._averages[model]

    def _is_in_model(self) -> bool:
        return self._averaged is not None and self._averaged.is_in_model()

    def _average(self) -> AveragedWeights | None:
        # Reading `self.model` synchronizes JAX's weights, which is too slow
        # for every batch.
        _ = self.model
        averaged = self._averaged
        return averaged if averaged is not None and averaged.exists else None

    def _required_average(self) -> AveragedWeights:
        messages.require_model(self, self._current)
        averaged = self._average()
        if averaged is None:
            messages.refuse_no_average(self)
        averaged.require_current()
        return averaged

    def _swap_in(self) -> None:
        averaged = self._average()
        if averaged is not None:
            averaged.require_current()
            if not averaged.is_in_model():
                averaged.apply()

    def _measure(self) -> None:
        """Measure the statistics of the weights in the model, if requested."""
        if self._statistics is not None:
            self._statistics.measure(self.model)

    def _measure_if_needed(self) -> None:
        averaged = self._averaged
        if self._statistics is None or averaged is None:
            return
        if averaged.is_in_model() and not averaged.measured:
            variables = self._statistics.variables(self.model, self.include)
            self._statistics.measure(self.model)
            averaged.take_over(variables)

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
        attributes = {ATTRIBUTE: profile().to_json()}
        require_readable(self.model)
        with applied(), replacing(filepath) as written:
            save_weights_alone(self.model, written, attributes)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
