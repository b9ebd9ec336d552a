"""The state of an average in the files that Keras writes of its model.

Keras saves whatever saveable it finds among a model's attributes. `attach`
gives the model one more, which the model does not list: `model.layers` and
`model.variables` stay as they are, and a model without it reads the same files.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import h5py
import keras
import numpy

from keras_wavg.adapters import has_quantized_adapters
from keras_wavg.backend import (
    assign,
    attach_weights,
    host_copies,
    host_copy,
    on_devices,
    require_readable,
)
from keras_wavg.warning import warn

# Keras visits public attributes first and private ones last. "~" comes after
# both: when the average is loaded, the model's weights have been.
_PREFIX = "~wavg_"


class SavedAverage(keras.layers.Layer):
    """What Keras meets when it saves or loads the model.

    Args:
        average: A `RunningAverage`.

    Attributes:
        visited: Whether Keras has come to it in a load.
        loading: What loads it together with the others of its model.
    """

    def __init__(self, average: Any) -> None:
        super().__init__(name=average.name, trainable=False)
        self.built = True
        self.average = average
        self.visited = False
        self.loading: _Loading | None = None

    def save_own_variables(self, store: Any) -> None:
        """Write the state into the store of a file."""
        for key, array in self.average.save().to_dict().items():
            store[key] = array

    def load_own_variables(self, store: Any) -> None:
        """Take the state over from the store of a file."""
        self.visited = True
        arrays: Mapping[str, Any] | None = None
        if has_quantized_adapters(self.average.model):
            warn(
                "A file has quantized kernels with their adapters (LoRA) "
                f"merged into them: the average '{self.name}' starts anew, "
                "and the training goes on from what was in the model when it "
                "was saved. An Orbax checkpoint keeps them apart."
            )
        else:
            # Keras 3.10 hands out datasets that close with the file.
            arrays = {k: numpy.asarray(store[k]) for k in store.keys()}  # noqa: SIM118
        loading, self.loading = self.loading, None
        if loading is None:
            self.load(arrays)
        else:
            loading.take(self, arrays)

    def load(self, arrays: Mapping[str, Any] | None) -> None:
        """Take the state over, or tell that there is none.

        Args:
            arrays: Dict of arrays. `None`: begin anew.
        """
        self.visited = True
        if arrays is not None and not arrays:
            warn(
                f"What was loaded has no average named '{self.name}'. The "
                "average starts anew from the loaded weights.",
            )
        self.average.load(arrays or {})


class _Loading:
    """Loads all averages of a model or, if one is bad, not even the weights.

    Keras loads the averages last.

    Args:
        model: A Keras model, of which nothing is loaded yet.
    """

    def __init__(self, model: Any) -> None:
        attach_weights(model)
        optimizer = getattr(model, "optimizer", None)
        self._variables = [
            *model.variables,
            *getattr(optimizer, "variables", ()),
        ]
        self._before = host_copies(self._variables)
        self._waiting = len(saved_averages(model))
        self._states: list[tuple[SavedAverage, Mapping[str, Any] | None]] = []
        self._is_refused = False

    def take(
        self, saved: SavedAverage, arrays: Mapping[str, Any] | None
    ) -> None:
        """Check the state of one average, and load all with the last."""
        self._waiting -= 1
        self._states.append((saved, arrays))
        try:
            saved.average.check(arrays or {})
        except ValueError:
            self._is_refused = True
            assign(self._variables, self._before)
            raise
        if not self._waiting and not self._is_refused:
            for one, state in self._states:
                one.load(state)


def attach(model: Any, average: Any) -> None:
    """Save an average in all files of its model.

    It replaces an earlier average of the same name.

    Args:
        model: A Keras model.
        average: See `SavedAverage`.
    """
    if is_attached(model, average):
        return
    _set(model, _PREFIX + average.name, SavedAverage(average))
    methods = load_weights, load_own_variables, get_state_tree, set_state_tree
    for method in methods:
        if not hasattr(type(model), method.__name__):
            continue  # A trainer that is no `keras.Model`.
        bound = functools.partial(method, model)
        public = getattr(type(model), method.__name__)
        _set(model, method.__name__, functools.update_wrapper(bound, public))


def is_attached(model: Any, average: Any) -> bool:
    """Whether the model saves this average, and not another of its name."""
    saved = vars(model).get(_PREFIX + average.name)
    return saved is not None and saved.average is average


def saved_averages(model: Any) -> dict[str, SavedAverage]:
    """The averages that are saved with `model`, by the names of attributes."""
    return {k: v for k, v in vars(model).items() if k.startswith(_PREFIX)}


def save_weights_alone(
    model: Any, filepath: Any, attributes: Mapping[str, str] | None = None
) -> None:
    """Save the weights without the optimizer and without the averages.

    Args:
        model: A Keras model.
        filepath: String or `pathlib.Path` that ends in `.weights.h5`.
        attributes: Dict of texts to be written into the file, or `None`.

    Raises:
        ValueError: If weights are spread over several processes.
    """
    require_readable(model)
    keras.saving.save_weights(model, filepath, objects_to_skip=_others(model))
    if attributes:
        with h5py.File(filepath, "a") as file:
            file.attrs.update(attributes)


def load_weights_alone(model: Any, filepath: Any) -> None:
    """Load what `save_weights_alone` saved, and leave all else as it is."""
    # No average is going to be loaded, and none to be refused.
    method = vars(model).pop("load_own_variables", None)
    try:
        keras.saving.load_weights(
            model, filepath, objects_to_skip=_others(model)
        )
    finally:
        if method is not None:
            _set(model, "load_own_variables", method)


def _others(model: Any) -> list[Any]:
    return [getattr(model, "optimizer", None), *saved_averages(model).values()]


def load_weights(model: Any, *args: Any, **options: Any) -> None:
    """`model.load_weights`, after which no average is one of other weights.

    Arguments are passed on as they are: a model may have a `load_weights` of
    its own.
    """
    saved = saved_averages(model).values()
    for one in saved:
        one.visited = False
    with _as_reference(model):
        type(model).load_weights(model, *args, **options)
    for one in saved:
        if not one.visited:
            one.load({})


def load_own_variables(model: Any, store: Any) -> None:
    """`model.load_own_variables`, with which Keras begins to load a model."""
    loading = _Loading(model)
    for one in saved_averages(model).values():
        one.loading = loading
    type(model).load_own_variables(model, store)


@contextlib.contextmanager
def _as_reference(model: Any) -> Iterator[None]:
    """Context in which the state tree tells where a checkpoint is to go."""
    method = vars(model).pop("get_state_tree", None)
    if method is not None:
        _set(model, "get_state_tree", functools.partial(_reference, model))
    try:
        yield
    finally:
        if method is not None:
            _set(model, "get_state_tree", method)


def _reference(model: Any) -> Any:
    """A state tree, with a tensor for each array of any average's state.

    How many a checkpoint has of them is known once it is loaded.
    """

    def of_average(attribute: str) -> Any:
        if not attribute.startswith(_PREFIX):
            return None
        saved = saved_averages(model).get(attribute)
        if saved is not None:
            return _Reference({}, saved.average.layout())
        # That of nobody here. It is read, and passed over.
        count = on_devices(numpy.array(0), None, model)
        return _Reference({}, lambda _: count)

    tree = type(model).get_state_tree(model)
    others = tree["non_trainable_variables"]
    tree["non_trainable_variables"] = _Reference(others, of_average)
    return tree


class _Reference(dict[str, Any]):
    """Where Keras looks up each array of a checkpoint, for its sharding.

    Args:
        found: Dict of what there is.
        other: Function from any other key to what there would be.
    """

    def __init__(
        self, found: Mapping[str, Any], other: Callable[[str], Any]
    ) -> None:
        super().__init__(found)
        self._other = other

    def get(self, key: str, default: Any = None) -> Any:
        """What there is, or would be."""
        del default
        return self[key] if key in self else self._other(key)


def get_state_tree(model: Any, value_format: str = "backend_tensor") -> Any:
    """`model.get_state_tree`, which is what Orbax saves, with the averages."""
    tree = type(model).get_state_tree(model, value_format)
    for attribute, one in saved_averages(model).items():
        if value_format == "numpy_array":
            saved = one.average.save()
            arrays = saved.to_dict(lambda array, _: host_copy(array))
        else:
            arrays = one.average.save_on_devices()
        # Here, a model without averages passes over what it does not know.
        tree["non_trainable_variables"][attribute] = arrays
    return tree


def set_state_tree(model: Any, state_tree: Any) -> None:
    """`model.set_state_tree` with the averages, of which none may be bad."""
    others = state_tree.get("non_trainable_variables")
    if others is None:
        # A part of the tree is a user's own business, not a checkpoint.
        type(model).set_state_tree(model, state_tree)
        return
    loading = _Loading(model)
    type(model).set_state_tree(model, state_tree)
    for attribute, one in saved_averages(model).items():
        loading.take(one, others.get(attribute, {}))


def _set(model: Any, attribute: str, value: Any) -> None:
    # Keras' own `__setattr__` would track it as a layer of the model.
    object.__setattr__(model, attribute, value)
