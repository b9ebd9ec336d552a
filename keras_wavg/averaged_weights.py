"""The averaged weights of one model, which can be swapped in."""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg import swapping
from keras_wavg.averages.update_rule import Counters
from keras_wavg.backend import (
    assign,
    host_copies,
    recovered_weights,
    require_readable,
    sharded_like,
    sync_weights,
)
from keras_wavg.clock import UpdateTime
from keras_wavg.finite import indices_not_finite
from keras_wavg.lora import merged_in_files, require_complete_layers
from keras_wavg.plan import Plan
from keras_wavg.state import State, holds_average


class AveragedWeights:
    """Averages of the variables of a model.

    Args:
        model: A built Keras model.
        plan: A `Plan`, whose name is unique among the averages of the model.

    Attributes:
        averages: The `Accumulator`.
        replaced: Paths of the trainable weights that were changed while they
            held the average.
        measured: Whether `take_over` was called since the last update.

    Raises:
        ValueError: If `plan.include` matches no variable of the model, or only
            some weights of a layer with LoRA, or if the target does not fit.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        # Weak, because the model holds this object, so that Keras saves it.
        self._model = weakref.ref(model)
        self._plan = plan
        self._variables = plan.variables(model)
        self._target = plan.target_variables(model)
        require_complete_layers(model, self._variables)
        # `Any`, because some methods have more than an `Accumulator`.
        self.averages: Any = plan.method.accumulator(self._variables)
        self.averages.locate_weights(model)
        self.replaced: list[str] = []
        self.measured = False

    @property
    def model(self) -> Any:
        """The model, or `None` if it was deleted."""
        return self._model()

    @property
    def started(self) -> bool:
        """Whether the average has been started or updated."""
        return not self.averages.is_empty

    def refresh(self) -> bool:
        """Look up the variables again: layers may have been frozen or added.

        Returns:
            Boolean, whether the averaged variables are still the same.
        """
        self.averages.locate_weights(self.model)
        return self.is_current()

    def is_current(self) -> bool:
        """Whether the averaged variables are still those of the model."""
        variables = self._plan.variables(self.model)
        return [*map(id, variables)] == [*map(id, self._variables)]

    def has_all_weights_in_model(self) -> bool:
        """Whether the model still has all averaged variables."""
        return {*map(id, self._variables)} <= {*map(id, self.model.weights)}

    def require_current(self) -> None:
        """Refuse variables that the model no longer has.

        Raises:
            ValueError: If the averaged variables are no longer the same.
        """
        if not self.is_current():
            raise ValueError(
                f"The model must have the weights of '{self._plan.name}'. "
                "Received: other weights, after `quantize`, `pop` or a new "
                "layer. Call `restore()` first. `fit` restarts the average."
            )

    def start(self) -> None:
        """Set the average to the current weights."""
        self.averages.start(self.model)
        self._copy_to_target()

    def update(self, time: UpdateTime) -> None:
        """Update the average with the current weights."""
        self.measured = False
        self.averages.update(self.model, time)
        self._copy_to_target()

    def start_target(self) -> None:
        """Set the target, before the first update, to the raw weights."""
        if not self.exists:
            sync_weights(self.model)
            assign(self._target, self.averages.copies(self._variables))

    def _copy_to_target(self) -> None:
        if self._target:
            self.averages.copy_to(self._target, self.model)

    def overwrite(self) -> None:
        """Set the trainable weights to their average."""
        sync_weights(self.model)
        for variable, average in zip(
            self._variables, self.averages.read(), strict=True
        ):
            if variable.trainable:
                assign([variable], [average])

    def take_over(self, variables: Sequence[Any]) -> None:
        """Set the averages of some variables to the current values.

        Args:
            variables: Keras variables, measured for the average in the model.
        """
        averages = self.with_values_of(variables, self.averages.read())
        self.averages.load(averages, self.counters)
        self._copy_to_target()
        self.measured = True

    def with_values_of(
        self, variables: Sequence[Any], averages: Sequence[Any]
    ) -> list[Any]:
        """Return averages with the current values of some variables.

        Args:
            variables: Keras variables whose values replace their averages.
            averages: Tensors in the order of the averaged variables.
        """
        replaced = set(map(id, variables))
        return [
            keras.ops.copy(variable.value)
            if id(variable) in replaced
            else average
            for variable, average in zip(self._variables, averages, strict=True)
        ]

    @property
    def counters(self) -> Counters:
        """The counters, as integers."""
        return self.averages.counters

    @property
    def steps(self) -> int:
        """The number of optimizer steps, or of samples, in the average."""
        return int(self.counters.steps)

    @property
    def exists(self) -> bool:
        """Whether the average has been updated."""
        return self.steps > 0

    # Swapping

    def is_in_model(self) -> bool:
        """Whether weights of the model hold this average."""
        sync_weights(self.model)
        swapping.discard_overwritten(self._variables)
        return self in swapping.owners(self._variables)

    def may_be_in_model(self) -> bool:
        """Whether an average was swapped in, without reading the weights."""
        return swapping.any_swapped(self._variables)

    def paths_not_finite(self) -> list[str]:
        """Paths of the raw weights with elements that are not finite.

        Elements that have never been finite do not count.
        """
        sync_weights(self.model)
        raw = swapping.raw_values(self._variables)
        weights = [raw.get(i, v.value) for i, v in enumerate(self._variables)]
        indices = indices_not_finite(weights, self.averages.read)
        return [self._variables[i].path for i in indices]

    def apply(self) -> None:
        """Swap the average in, and keep the raw weights."""
        sync_weights(self.model)
        values = self.averages.read()
        swapping.swap_in(self._variables, values, self, self.averages.copies)

    def restore(self) -> None:
        """Restore the raw weights."""
        if swapping.any_swapped(self._variables):
            if not self.has_all_weights_in_model():
                self.require_current()
            sync_weights(self.model)
            swapping.restore(self._variables)

    @contextlib.contextmanager
    def applied(self, values: Sequence[Any] | None = None) -> Iterator[None]:
        """Context in which the average, or other weights, are swapped in.

        Args:
            values: Tensors or arrays in the order of the averaged variables.
                Defaults to `None`, the average.

        Yields:
            `None`.
        """
        sync_weights(self.model)
        swapped_in = swapping.swapped_in(
            self._variables,
            self.averages.read() if values is None else values,
            self if values is None else None,
            self.averages.copies,
        )
        with swapped_in, recovered_weights(self.model):
            yield

    def contents(self) -> list[swapping.Contents]:
        """What the averaged variables hold now, for `restore_contents`."""
        # A failed `evaluate` may have left weights outside of the variables.
        sync_weights(self.model)
        return swapping.contents(self._variables)

    def restore_contents(self, contents: Sequence[swapping.Contents]) -> None:
        """Restore what the averaged variables held."""
        sync_weights(self.model)
        swapping.restore_contents(contents)

    def get_weights(self, averages: Sequence[Any]) -> list[numpy.ndarray]:
        """Averages as arrays, in the order of `model.get_weights()`.

        Args:
            averages: Tensors in the order of the averaged variables.

        Raises:
            ValueError: If weights are sharded across processes.
        """
        require_readable(self.model)
        by_id = dict(zip(map(id, self._variables), averages, strict=True))
        others = [v for v in self.model.weights if id(v) not in by_id]
        by_id |= zip(map(id, others), host_copies(others), strict=True)
        return [
            keras.ops.convert_to_numpy(by_id[id(v)]) for v in self.model.weights
        ]

    # Files

    def save(
        self,
    ) -> tuple[dict[int, Any], dict[int, Any], dict[str, dict[int, Any]]]:
        """The arrays to be saved besides the weights of the model.

        Returns:
            Tuple `(averages, raw, extra)`: dicts of tensors, by the index of
            the averaged weight. Averages that the model holds are omitted.
        """
        sync_weights(self.model)
        swapping.discard_overwritten(self._variables)
        raw = swapping.raw_values(self._variables, self)
        merged = merged_in_files(self.model)
        needed = [
            i
            for i, variable in enumerate(self._variables)
            if self.started
            and not (
                i in raw
                and holds_average(variable)
                and id(variable) not in merged
            )
        ]
        averages = self.averages.read() if needed else []
        names = self._plan.method.extra_names(self.steps)
        arrays = self.averages.extra_arrays() if names else {}
        extra = {name: dict(enumerate(a)) for name, a in arrays.items()}
        return {i: averages[i] for i in needed}, raw, extra

    def load(self, state: State) -> None:
        """Load what `save` returned, after the weights of the model.

        Args:
            state: A checked `State` of these variables.
        """
        averages = [
            sharded_like(state.averages.get(i, variable.value), variable)
            for i, variable in enumerate(self._variables)
        ]
        self.replaced.clear()
        self.measured = False
        counters = Counters(state.counts.last, state.counts.steps)
        self.averages.load(averages, counters)
        if state.extra:
            self.averages.load_extra_arrays(
                {k: self._in_order(arrays) for k, arrays in state.extra.items()}
            )
        self._copy_to_target()
        self._load_raw(state)

    def _load_raw(self, state: State) -> None:
        merged = merged_in_files(self.model)
        for i, average in state.averages.items():
            if i in state.raw and id(self._variables[i]) in merged:
                assign([self._variables[i]], [average])
        swapping.register(
            [self._variables[i] for i in state.raw],
            list(state.raw.values()),
            self,
            self.averages.copies,
        )

    def _in_order(self, arrays: Mapping[int, Any]) -> list[Any]:
        return [
            sharded_like(arrays[i], v) for i, v in enumerate(self._variables)
        ]
