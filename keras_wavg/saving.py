"""Saves the state of averages with their model.

Keras saves all layers that are attributes of a model. `attach` adds such an
attribute, which Keras does not track: `model.layers` and `model.variables` do
not change, and a model without averages can load the same files.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import h5py
import keras
import numpy

from keras_wavg.backend import (
    assign,
    host_copies,
    host_copy,
    require_readable,
    sync_weights,
    to_tensor,
)
from keras_wavg.lora import has_quantized_adapters
from keras_wavg.warning import warn

# Keras loads attributes in alphabetical order. "~" sorts after all letters, so
# averages are loaded after the weights of the model.
_PREFIX = "~wavg_"


class SavedAverage(keras.layers.Layer):
    """The attribute of a model with which Keras saves and loads an average.

    Args:
        average: A `ModelAverage`.

    Attributes:
        visited: Whether Keras has loaded it since `load_weights` was called.
        loading: Loads it together with the other averages of the model.
    """

    def __init__(self, average: Any) -> None:
        super().__init__(name=average.name, trainable=False)
        self.built = True
        self.average = average
        self.visited = False
        self.loading: _Loading | None = None

    def save_own_variables(self, store: Any) -> None:
        """Write the state to the store of a file."""
        for key, array in self.average.save().to_dict().items():
            store[key] = array

    def load_own_variables(self, store: Any) -> None:
        """Read the state from the store of a file."""
        self.visited = True
        arrays: Mapping[str, Any] | None = None
        if has_quantized_adapters(self.average.model):
            warn(
                f"The average '{self.name}' restarts: the file has quantized "
                "kernels with their adapters (LoRA) merged into them. Training "
                "continues from the weights that the model had when it was "
                "saved. Use an Orbax checkpoint, which does not merge them."
            )
        else:
            # Keras 3.10 returns datasets that are closed with the file.
            arrays = {k: numpy.asarray(store[k]) for k in store.keys()}  # noqa: SIM118
        loading, self.loading = self.loading, None
        if loading is None:
            self.load(arrays)
        else:
            loading.add(self, arrays)

    def load(self, arrays: Mapping[str, Any] | None) -> None:
        """Load the state, and warn if there is none.

        Args:
            arrays: Dict of arrays, or `None` to restart without a warning.
        """
        self.visited = True
        if arrays is not None and not arrays:
            warn(
                f"The average '{self.name}' restarts: the file has no average "
                "with this name.",
            )
        self.average.load(arrays or {})


class _Loading:
    """Loads all averages of a model or, if one is invalid, nothing.

    Keras loads the averages last. If one is invalid, this restores the weights
    and the optimizer.

    Args:
        model: A Keras model, before anything is loaded.
    """

    def __init__(self, model: Any) -> None:
        sync_weights(model)
        optimizer = getattr(model, "optimizer", None)
        self._variables = [
            *model.variables,
            *getattr(optimizer, "variables", ()),
        ]
        self._before = host_copies(self._variables)
        self._remaining = len(saved_averages(model))
        self._states: list[tuple[SavedAverage, Mapping[str, Any] | None]] = []
        self._is_invalid = False

    def add(
        self, saved: SavedAverage, arrays: Mapping[str, Any] | None
    ) -> None:
        """Check the state of one average. After the last one, load all."""
        self._remaining -= 1
        self._states.append((saved, arrays))
        try:
            saved.average.check(arrays or {})
        except ValueError:
            self._is_invalid = True
            assign(self._variables, self._before)
            raise
        if not self._remaining and not self._is_invalid:
            for other, state in self._states:
                other.load(state)


def attach(model: Any, average: Any) -> None:
    """Make Keras save an average with its model.

    This replaces an average with the same name.

    Args:
        model: A Keras model.
        average: A `ModelAverage`.
    """
    if is_attached(model, average):
        return
    _set(model, _PREFIX + average.name, SavedAverage(average))
    methods = load_weights, load_own_variables, get_state_tree, set_state_tree
    for method in methods:
        if not hasattr(type(model), method.__name__):
            continue  # A trainer that is not a `keras.Model`.
        bound = functools.partial(method, model)
        public = getattr(type(model), method.__name__)
        _set(model, method.__name__, functools.update_wrapper(bound, public))


def is_attached(model: Any, average: Any) -> bool:
    """Whether the model saves this average, not another with its name."""
    saved = vars(model).get(_PREFIX + average.name)
    return saved is not None and saved.average is average


def saved_averages(model: Any) -> dict[str, SavedAverage]:
    """The averages that are saved with a model, by attribute name."""
    return {k: v for k, v in vars(model).items() if k.startswith(_PREFIX)}


def save_weights_alone(
    model: Any, filepath: Any, attributes: Mapping[str, str] | None = None
) -> None:
    """Save the weights without the optimizer and the averages.

    Args:
        model: A Keras model.
        filepath: String or `pathlib.Path` that ends in `.weights.h5`.
        attributes: Dict of strings, the attributes of the file. Defaults to
            `None`.

    Raises:
        ValueError: If weights are sharded across processes.
    """
    require_readable(model)
    keras.saving.save_weights(model, filepath, objects_to_skip=_others(model))
    if attributes:
        with h5py.File(filepath, "a") as file:
            file.attrs.update(attributes)


def load_weights_alone(model: Any, filepath: Any) -> None:
    """Load a file of `save_weights_alone` without changing the averages."""
    # This method would wait for averages to be loaded.
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
    """Call `model.load_weights`, and restart averages that were not loaded.

    All arguments are passed on: a model may override `load_weights`.
    """
    saved = saved_averages(model).values()
    for average in saved:
        average.visited = False
    with _reference_tree_in_use(model):
        type(model).load_weights(model, *args, **options)
    for average in saved:
        if not average.visited:
            average.load({})


def load_own_variables(model: Any, store: Any) -> None:
    """Call `model.load_own_variables`, the start of loading a model."""
    loading = _Loading(model)
    for average in saved_averages(model).values():
        average.loading = loading
    type(model).load_own_variables(model, store)


@contextlib.contextmanager
def _reference_tree_in_use(model: Any) -> Iterator[None]:
    """Context in which the state tree is a reference for loading."""
    method = vars(model).pop("get_state_tree", None)
    if method is not None:
        _set(model, "get_state_tree", functools.partial(_reference_tree, model))
    try:
        yield
    finally:
        if method is not None:
            _set(model, "get_state_tree", method)


def _reference_tree(model: Any) -> Any:
    """A state tree with a tensor for every array of an average.

    Which arrays a checkpoint has is unknown before it is loaded.
    """

    def of_average(attribute: str) -> Any:
        if not attribute.startswith(_PREFIX):
            return None
        saved = saved_averages(model).get(attribute)
        if saved is not None:
            return _Reference({}, saved.average.layout())
        # The average of another callback, which is read and ignored.
        count = to_tensor(numpy.array(0), None, model)
        return _Reference({}, lambda _: count)

    tree = type(model).get_state_tree(model)
    others = tree["non_trainable_variables"]
    tree["non_trainable_variables"] = _Reference(others, of_average)
    return tree


class _Reference(dict[str, Any]):
    """Dict in which Keras looks up the sharding of arrays of a checkpoint.

    Args:
        known: Dict of known entries.
        other: Function from any other key to an entry.
    """

    def __init__(
        self, known: Mapping[str, Any], other: Callable[[str], Any]
    ) -> None:
        super().__init__(known)
        self._other = other

    def get(self, key: str, default: Any = None) -> Any:
        """Return a known entry, or that of the function."""
        del default
        return self[key] if key in self else self._other(key)


def get_state_tree(model: Any, value_format: str = "backend_tensor") -> Any:
    """Call `model.get_state_tree`, which Orbax saves, and add the averages."""
    tree = type(model).get_state_tree(model, value_format)
    for attribute, saved in saved_averages(model).items():
        if value_format == "numpy_array":
            state = saved.average.save()
            arrays = state.to_dict(lambda array, _: host_copy(array))
        else:
            arrays = saved.average.save_on_devices()
        # A model without averages ignores unknown entries in this place.
        tree["non_trainable_variables"][attribute] = arrays
    return tree


def set_state_tree(model: Any, state_tree: Any) -> None:
    """Call `model.set_state_tree`, and load the averages."""
    others = state_tree.get("non_trainable_variables")
    if others is None:
        # A user sets a part of the tree, which is not a checkpoint.
        type(model).set_state_tree(model, state_tree)
        return
    loading = _Loading(model)
    type(model).set_state_tree(model, state_tree)
    for attribute, saved in saved_averages(model).items():
        loading.add(saved, others.get(attribute, {}))


def _set(model: Any, attribute: str, value: Any) -> None:
    # `__setattr__` of Keras would track it as a layer of the model.
    object.__setattr__(model, attribute, value)
