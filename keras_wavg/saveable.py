"""A running average as a passenger of its model in the files of Keras.

Keras saves whatever saveable it finds among a model's attributes. `attach`
gives the model one more, past the model's own book-keeping: `model.layers` and
`model.variables` stay as they are, and a model without it reads the same files.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy

# Keras visits public attributes first and private ones last. "~" comes after
# both: when the average is loaded, the model's weights have been.
_PREFIX = "~wavg_"


class SavedAverage(keras.layers.Layer):
    """What Keras meets when it saves or loads the model.

    Args:
        average: A `RunningAverage`, or whatever else has a `name`,
            `save() -> dict`, `check(dict)` and `load(dict)`.
    """

    def __init__(self, average: Any) -> None:
        super().__init__(name=average.name, trainable=False)
        self.built = True
        self.average = average
        self.visited = False

    def save_own_variables(self, store: Any) -> None:
        """Write the state into the store of a file."""
        for key, array in self.average.save().items():
            store[key] = array

    def load_own_variables(self, store: Any) -> None:
        """Take the state over from the store of a file."""
        # Keras 3.10 hands out datasets that close with the file.
        self.load({k: numpy.asarray(store[k]) for k in store.keys()})  # noqa: SIM118

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Take the state over, or tell that there is none."""
        self.visited = True
        if not arrays:
            warnings.warn(
                f"What was loaded has no average named '{self.name}'. The "
                "average starts anew from the loaded weights.",
                stacklevel=2,
            )
        self.average.load(arrays)


class CheckedAverage(SavedAverage):
    """Reads the state and changes nothing."""

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Refuse a bad state."""
        self.average.check(arrays)


class _Probe(keras.layers.Layer):
    """Carries checks through a file, in the place of the model."""

    def load_own_variables(self, store: Any) -> None:
        """Pass over the model's own variables."""


def attach(model: Any, average: Any) -> None:
    """Let an average travel in the files of its model.

    It takes the seat of an earlier average of the same name.

    Args:
        model: A Keras model.
        average: See `SavedAverage`.
    """
    if is_attached(model, average):
        return
    _set(model, _PREFIX + average.name, SavedAverage(average))
    for method in (load_weights, get_state_tree, set_state_tree):
        riding = functools.partial(method, model)
        public = getattr(type(model), method.__name__)
        _set(model, method.__name__, functools.update_wrapper(riding, public))


def is_attached(model: Any, average: Any) -> bool:
    """Whether the seat of its name is this average's."""
    seated = vars(model).get(_PREFIX + average.name)
    return seated is not None and seated.average is average


def saved_averages(model: Any) -> dict[str, SavedAverage]:
    """The averages that travel with `model`, by the attribute they are."""
    return {k: v for k, v in vars(model).items() if k.startswith(_PREFIX)}


def save_weights_alone(
    model: Any, filepath: Any, attributes: Mapping[str, str] | None = None
) -> None:
    """Save the weights without the optimizer and without the averages.

    Args:
        model: A Keras model.
        filepath: String or `pathlib.Path` that ends in `.weights.h5`.
        attributes: Dict of texts to be written into the file, or `None`.
    """
    keras.saving.save_weights(model, filepath, objects_to_skip=_others(model))
    if attributes:
        with h5py.File(filepath, "a") as file:
            file.attrs.update(attributes)


def load_weights_alone(model: Any, filepath: Any) -> None:
    """Load what `save_weights_alone` saved, and leave all else as it is."""
    keras.saving.load_weights(model, filepath, objects_to_skip=_others(model))


def _others(model: Any) -> list[Any]:
    return [getattr(model, "optimizer", None), *saved_averages(model).values()]


def load_weights(
    model: Any, filepath: Any, skip_mismatch: bool = False, **options: Any
) -> None:
    """`model.load_weights`, which refuses a bad average before it begins."""
    saved = saved_averages(model)
    if not skip_mismatch and str(filepath).endswith(
        (".keras", ".weights.h5", ".weights.json")
    ):
        probe = _Probe(name="probe")
        probe.built = True
        for attribute, one in saved.items():
            _set(probe, attribute, CheckedAverage(one.average))
        keras.saving.load_weights(probe, filepath)
    for one in saved.values():
        one.visited = False
    type(model).load_weights(
        model, filepath, skip_mismatch=skip_mismatch, **options
    )
    for one in saved.values():
        if not one.visited:
            one.load({})


def get_state_tree(model: Any, value_format: str = "backend_tensor") -> Any:
    """`model.get_state_tree`, which is what Orbax saves, with the averages."""
    tree = type(model).get_state_tree(model, value_format)
    for attribute, one in saved_averages(model).items():
        arrays = one.average.save()
        if value_format == "numpy_array":
            arrays = {
                k: numpy.array(keras.ops.convert_to_numpy(a))
                for k, a in arrays.items()
            }
        # Here, a model without averages passes over what it does not know.
        tree["non_trainable_variables"][attribute] = arrays
    return tree


def set_state_tree(model: Any, state_tree: Any) -> None:
    """`model.set_state_tree` with the averages, refused before it begins."""
    others = state_tree.get("non_trainable_variables")
    # A part of the tree is a user's own business, not a checkpoint.
    saved = {} if others is None else saved_averages(model)
    for attribute, one in saved.items():
        one.average.check(others.get(attribute, {}))
    type(model).set_state_tree(model, state_tree)
    for attribute, one in saved.items():
        one.load(others.get(attribute, {}))


def _set(model: Any, attribute: str, value: Any) -> None:
    # Keras' own `__setattr__` would track it as a layer of the model.
    object.__setattr__(model, attribute, value)
