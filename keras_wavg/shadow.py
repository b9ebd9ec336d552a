"""The average of one model's weights, and its way into the model."""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg import swapping
from keras_wavg.adapters import merged_in_files, refuse_a_part
from keras_wavg.averages.counting import Counters
from keras_wavg.backend import (
    assign,
    attach_weights,
    host_copies,
    laid_out,
    require_readable,
    weights_survive,
)
from keras_wavg.clock import Reading
from keras_wavg.finite import not_finite
from keras_wavg.included import averaged_variables
from keras_wavg.plan import Plan
from keras_wavg.state import State, holds_average
from keras_wavg.warning import warn


class Shadow:
    """Averages of a model's variables.

    Args:
        model: A built Keras model.
        plan: A `Plan`. A model has one average of a name at most.

    Attributes:
        averages: The `Accumulator`.
        replaced: Paths of the trained weights that somebody wrote to while
            they held the average.
        measured: Whether `take_over` was called since the last update.

    Raises:
        ValueError: If `plan.include` matches no variable of the model, or a
            part of a layer with adapters.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        # Weak, because the model holds this, to have it saved.
        self._model = weakref.ref(model)
        self._plan = plan
        self._variables = averaged_variables(model, plan.include)
        refuse_a_part(model, self._variables)
        self.averages: Any = plan.method.accumulator(self._variables)
        self.averages.bind(model)
        self.replaced: list[str] = []
        self.measured = False

    @property
    def model(self) -> Any:
        """The model, or `None` if it is gone."""
        return self._model()

    @property
    def begun(self) -> bool:
        """Whether there is an average, or a beginning of one."""
        return not self.averages.is_empty

    def bind(self) -> bool:
        """Find the variables again: layers may have been frozen or added.

        Returns:
            Boolean, whether they are still the variables of the model.
        """
        self.averages.bind(self.model)
        return self.is_current()

    def is_current(self) -> bool:
        """Whether the averaged variables are still those of the model."""
        variables = averaged_variables(self.model, self._plan.include)
        return [*map(id, variables)] == [*map(id, self._variables)]

    def has_all_weights_in_model(self) -> bool:
        """Whether the model still has all averaged variables, maybe others."""
        return {*map(id, self._variables)} <= {*map(id, self.model.weights)}

    def require_current(self) -> None:
        """Refuse to go on with variables that the model no longer has.

        Raises:
            ValueError: If the model has others.
        """
        if not self.is_current():
            raise ValueError(
                "The model must have the weights that were averaged. Received: "
                f"a model whose weights were exchanged, by `quantize`, `pop` "
                "or another layer, since the average "
                f"'{self._plan.name}' of {len(self._variables)} weights began. "
                "Call `restore()` before such a change. The next `fit` begins "
                "a new average."
            )

    def begin(self) -> None:
        """Start at the weights of now, as a textbook average does."""
        self.averages.begin(self.model)

    def update(self, reading: Reading) -> None:
        """Move towards the weights of now."""
        self.measured = False
        self.averages.update(self.model, reading)

    def overwrite(self) -> None:
        """Let the weights that gradients train be their average."""
        attach_weights(self.model)
        for variable, average in zip(
            self._variables, self.averages.read(), strict=True
        ):
            if variable.trainable:
                assign([variable], [average])

    def take_over(self, variables: Sequence[Any]) -> None:
        """Let the averages of variables be what the model holds now.

        Args:
            variables: Keras variables, measured for the average in the model.
        """
        taken = set(map(id, variables))
        averages = [
            variable.value if id(variable) in taken else average
            for variable, average in zip(
                self._variables, self.averages.read(), strict=True
            )
        ]
        self.averages.load(averages, self.counters)
        self.measured = True

    @property
    def counters(self) -> Counters:
        """The counts, as integers."""
        return self.averages.counters

    @property
    def steps(self) -> int:
        """The optimizer steps, or samples, that the average covers."""
        return int(self.counters.steps)

    @property
    def exists(self) -> bool:
        """Whether there is an average: a first update was made."""
        return self.steps > 0

    # In and out of the model

    def is_in_model(self) -> bool:
        """Whether weights of the model hold this average."""
        attach_weights(self.model)
        swapping.settle(self._variables)
        return self in swapping.owners(self._variables)

    def is_left_in(self) -> bool:
        """Whether weights hold an average, told without a look at them."""
        return swapping.is_any_in(self._variables)

    def paths_not_finite(self) -> list[str]:
        """Paths of weights of which an element is not finite, nor a constant.

        Whichever is in the model: an average is not finite only where its
        weight has never been.
        """
        attach_weights(self.model)
        raw = swapping.raw_values(self._variables)
        weights = [raw.get(i, v.value) for i, v in enumerate(self._variables)]
        found = not_finite(weights, self.averages.read)
        return [self._variables[i].path for i in found]

    def apply(self) -> None:
        """Put the average in the model, and keep the raw weights."""
        attach_weights(self.model)
        values = self.averages.read()
        swapping.put_in(self._variables, values, self, self.averages.copies)

    def restore(self) -> None:
        """Give the raw weights back."""
        if swapping.is_any_in(self._variables):
            if not self.has_all_weights_in_model():
                self.require_current()
            attach_weights(self.model)
            swapping.give_back(self._variables)

    @contextlib.contextmanager
    def applied(self, values: Sequence[Any] | None = None) -> Iterator[None]:
        """Context in which the model holds the average, or other weights.

        Args:
            values: Tensors or arrays in the order of the averaged variables.
                Defaults to `None`, the average.

        Yields:
            `None`.
        """
        attach_weights(self.model)
        holding = swapping.holding(
            self._variables,
            self.averages.read() if values is None else values,
            self if values is None else None,
            self.averages.copies,
        )
        with holding, weights_survive(self.model):
            yield

    def remembered(self) -> Any:
        """What the averaged weights hold now."""
        # What a failed `evaluate` left would come over it later.
        attach_weights(self.model)
        return swapping.remembered(self._variables)

    def put_back(self, before: Any) -> None:
        """Let the averaged weights hold again what they held."""
        attach_weights(self.model)
        swapping.put_back(before)

    def get_weights(self, averages: Sequence[Any]) -> list[numpy.ndarray]:
        """Averages as arrays, in the order of `model.get_weights()`.

        Args:
            averages: Tensors in the order of the averaged variables.

        Raises:
            ValueError: If weights span processes.
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
        """What a file needs besides the model's own weights.

        Returns:
            `(averages, raw, kept)`: dicts of tensors, by the index of the
            averaged weight. Averages that the model holds are left out.
        """
        attach_weights(self.model)
        swapping.settle(self._variables)
        raw = swapping.raw_values(self._variables, self)
        merged = merged_in_files(self.model)
        needed = [
            i
            for i, variable in enumerate(self._variables)
            if self.begun
            and not (
                i in raw
                and holds_average(variable)
                and id(variable) not in merged
            )
        ]
        averages = self.averages.read() if needed else []
        keeps = self._plan.method.keeps(self.steps)
        kept = self.averages.kept() if keeps else {}
        numbered = {name: dict(enumerate(a)) for name, a in kept.items()}
        return {i: averages[i] for i in needed}, raw, numbered

    def load(self, state: State) -> None:
        """Take over what `save` gave, once the model's weights are loaded.

        Args:
            state: A checked `State` of these variables.
        """
        counts = state.counts
        averages = [
            laid_out(state.averages.get(i, variable.value), variable)
            for i, variable in enumerate(self._variables)
        ]
        self.replaced.clear()
        self.measured = False
        self.averages.load(averages, Counters(counts.last, counts.steps))
        if state.kept:
            self.averages.keep(
                {k: self._in_order(found) for k, found in state.kept.items()}
            )
        self._load_raw(state)

    def _load_raw(self, state: State) -> None:
        merged = merged_in_files(self.model)
        for i, average in state.averages.items():
            if i in state.raw and id(self._variables[i]) in merged:
                assign([self._variables[i]], [average])
        swapping.adopt(
            [self._variables[i] for i in state.raw],
            list(state.raw.values()),
            self,
            self.averages.copies,
        )

    def _in_order(self, arrays: Mapping[int, Any]) -> list[Any]:
        return [laid_out(arrays[i], v) for i, v in enumerate(self._variables)]


def raw_weights_back(model: Any) -> None:
    """Give the raw weights back to a model, whosever averages are in it.

    Args:
        model: A built Keras model.
    """
    if not swapping.is_any_in(model.weights):
        return
    attach_weights(model)
    for owner in swapping.owners(model.weights):
        if owner.model is model and not owner.has_all_weights_in_model():
            # A part of the raw weights would come back beside others.
            swapping.forget(owner)
            warn(
                "The weights of the model were exchanged, by `quantize`, "
                "`pop` or another layer, while they held an average. The "
                "model keeps what it holds. Call `restore()` before such a "
                "change.",
            )
    swapping.give_back(model.weights)


@contextlib.contextmanager
def weights_kept(model: Any) -> Iterator[None]:
    """Context after which a model holds what it held on entering.

    Args:
        model: A Keras model.

    Yields:
        `None`.
    """
    attach_weights(model)
    with swapping.kept(model.weights), weights_survive(model):
        yield
