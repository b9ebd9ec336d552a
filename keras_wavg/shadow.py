"""The running average of one model's weights, and its way into the model."""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.adapters import merged_in_files, refuse_a_part
from keras_wavg.arguments import Include
from keras_wavg.backend import attach_weights
from keras_wavg.backend.counting import Counters
from keras_wavg.clock import Reading
from keras_wavg.plan import Plan
from keras_wavg.state import State, holds_average

# The averages that are in a model now, the latest last.
_inside: weakref.WeakKeyDictionary[Any, list["Shadow"]] = (
    weakref.WeakKeyDictionary()
)


class Shadow:
    """Averages of a model's variables.

    While the average is in the model, the shadow keeps the raw weights, bit for
    bit.

    Args:
        model: A built Keras model.
        plan: A `Plan`. A model holds one average of a name at most.

    Attributes:
        averages: What `plan.averages` made.
        begun: Whether there are averages, or a beginning of them.
        replaced: Whether somebody replaced the average in the model.
        measured: Whether `take_over` was called since the last update.

    Raises:
        ValueError: If `plan.include` matches no variable of the model, or a
            part of a layer with adapters.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        # Weak, or the values of `_inside` would keep its keys alive.
        self._model = weakref.ref(model)
        self._plan = plan
        self._variables = averaged_variables(model, plan.include)
        refuse_a_part(model, self._variables)
        self.averages = plan.averages(self._variables)
        self.averages.bind(model)
        self._raw: list[Any] | None = None
        self._swapping = False
        self.begun = False
        self.replaced = False
        self.measured = False

    @property
    def model(self) -> Any:
        """The model, or `None` if it is gone."""
        return self._model()

    def bind(self) -> bool:
        """Find the variables again: layers may have been frozen or added.

        Returns:
            Boolean, whether they are still the variables of the model.
        """
        self.averages.bind(self.model)
        variables = averaged_variables(self.model, self._plan.include)
        return [*map(id, variables)] == [*map(id, self._variables)]

    def begin(self) -> None:
        """Start at the weights of now, as a textbook average does."""
        self.begun = True
        self.averages.begin(self.model)

    def update(self, reading: Reading) -> None:
        """Move towards the weights of now."""
        self.begun = True
        self.measured = False
        self.averages.update(self.model, reading)

    def overwrite(self) -> None:
        """Let the weights that gradients train be their average."""
        attach_weights(self.model)
        for variable, average in zip(
            self._variables, self.averages.read(), strict=True
        ):
            if variable.trainable:
                variable.assign(average)

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

    @property
    def place(self) -> int:
        """Place among the averages in the model, from 1 on, or 0 if out."""
        stack = _inside.get(self.model, [])
        return stack.index(self) + 1 if self in stack else 0

    @property
    def applied(self) -> bool:
        """Whether the average was put in the model and not taken out since."""
        return self._raw is not None and self.model is not None

    def is_held(self) -> bool:
        """Whether the average was put in and the weights are still it."""
        if self._raw is None or self._swapping:
            return False
        return bool(self.averages.are_in_model())

    def apply(self) -> None:
        """Put the average in the model and keep the raw weights."""
        if self.applied:
            self.leave()
        self._raw = self.averages.snapshot()
        _inside.setdefault(self.model, []).append(self)
        self.put_in(self.averages.read())

    def restore(self) -> None:
        """Give the raw weights back.

        Raises:
            ValueError: If another average was put in on top of this one.
        """
        self._require_on_top()
        self.put_in(self._raw or [])
        self._forget_raw()

    def leave(self) -> None:
        """Give the raw weights back, unless somebody replaced the average.

        Their weights then stay, the raw weights are dropped, and `replaced`
        tells of it.
        """
        self._require_on_top()
        # A swap that was cut short left a mixture, and nobody's weights.
        self.replaced = not (self._swapping or self.is_held())
        if self.replaced:
            self._forget_raw()
        else:
            self.restore()

    def put_in(self, values: Sequence[Any]) -> None:
        """Let the averaged weights of the model be these."""
        # What a failed `evaluate` left would come over them later.
        attach_weights(self.model)
        self._swapping = True
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)
        self._swapping = False

    def get_weights(self, averages: Sequence[Any]) -> list[numpy.ndarray]:
        """Averages as arrays, in the order of `model.get_weights()`.

        Args:
            averages: Tensors in the order of the averaged variables.
        """
        by_id = dict(zip(map(id, self._variables), averages, strict=True))
        return [
            keras.ops.convert_to_numpy(by_id.get(id(v), v.value))
            for v in self.model.weights
        ]

    def save(
        self,
    ) -> tuple[dict[int, Any], dict[int, Any], dict[str, dict[int, Any]]]:
        """What a file needs besides the model's own weights.

        Returns:
            `(averages, raw, kept)`: dicts of tensors, by the index of the
            averaged weight. Averages that the model holds are left out.
        """
        held = self.is_held()
        merged = merged_in_files(self.model)
        needed = [
            i
            for i, variable in enumerate(self._variables)
            if self.begun
            and not (
                held and holds_average(variable) and id(variable) not in merged
            )
        ]
        averages = self.averages.read() if needed else []
        raw = dict(enumerate(self._raw or []))
        kept = self.averages.kept() if self._plan.kept(self.steps) else {}
        numbered = {name: dict(enumerate(a)) for name, a in kept.items()}
        return {i: averages[i] for i in needed}, raw, numbered

    def load(self, state: State) -> None:
        """Take over what `save` gave, once the model's weights are loaded.

        Args:
            state: A checked `State` of these variables.
        """
        counts = state.counts
        averages = [
            state.averages.get(i, variable.value)
            for i, variable in enumerate(self._variables)
        ]
        self.begun = True
        self.replaced = self.measured = False
        self.averages.load(
            averages, Counters(counts.last, counts.steps, counts.skipped)
        )
        if state.kept:
            self.averages.keep(
                {k: self._in_order(found) for k, found in state.kept.items()}
            )
        if counts.place:
            merged = merged_in_files(self.model)
            for i, average in state.averages.items():
                if id(self._variables[i]) in merged:
                    self._variables[i].assign(average)
            self._raw = self._in_order(state.raw)
            _inside.setdefault(self.model, []).insert(counts.place - 1, self)

    def _in_order(self, arrays: Mapping[int, Any]) -> list[Any]:
        return [arrays[i] for i in range(len(self._variables))]

    def _forget_raw(self) -> None:
        _inside[self.model].remove(self)
        self._raw = None
        self._swapping = False

    def _require_on_top(self) -> None:
        if shadow_in(self.model) is not self:
            raise ValueError(
                "Averages must leave a model in the reverse of the order in "
                "which they came in. Received: an average that lies under "
                "another one. Call `restore()` of the other one first."
            )


def shadow_in(model: Any) -> Shadow | None:
    """The average that is in `model`, the latest if there are several."""
    return next(reversed(_inside.get(model, [])), None)


def forget_raw(model: Any, name: str) -> None:
    """Let go of raw weights whose place in `model` was taken by others.

    Args:
        model: A Keras model, whose weights have been loaded from a file.
        name: String, the name of the average.
    """
    for shadow in list(_inside.get(model, [])):
        if shadow._plan.name == name:
            shadow._forget_raw()


@contextlib.contextmanager
def raw_weights(model: Any) -> Iterator[None]:
    """Context in which the latest average in `model` is out of it."""
    shadow = shadow_in(model)
    if shadow is not None:
        shadow.restore()
    try:
        yield
    finally:
        if shadow is not None:
            shadow.apply()


def averaged_variables(model: Any, include: Include) -> list[Any]:
    """The variables of a model that are averaged, in the model's order."""
    chosen = _predicate(include)
    variables = [
        variable
        for variable in model.weights
        if keras.backend.is_float_dtype(variable.dtype)
        # The scales of float8 training, which no optimizer steps.
        and not getattr(variable, "overwrite_with_gradient", False)
        and chosen(variable.path)
    ]
    if not variables:
        raise ValueError(
            "`include` must match the path of at least one floating-point "
            f"weight of the model. Received: include={include!r}, for weights "
            f"with the paths {[variable.path for variable in model.weights]}"
        )
    return variables


def _predicate(include: Include) -> Callable[[str], Any]:
    if include is None:
        return lambda _: True
    return re.compile(include).search if isinstance(include, str) else include
