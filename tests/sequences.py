"""Random sequences of calls on a model and its averages.

A twin of the model is trained in the same way without averages. So at any time
the raw weights equal those of the twin, bit for bit, and an average equals its
definition, computed from the weights of the twin.
"""

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import keras
import models
import numpy
import probe
import reference
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from models import BATCH, Samples, equal
from reused import Reused
from saving import weights_of

from keras_wavg import EMA, LAWA

X, Y = models.data(3)
WINDOW = 3
DECAY = 0.8
NAMES = ["ema", "lawa"]
HOOKS = [name for name in dir(keras.callbacks.Callback) if "on_t" in name]
HOOKS += ["on_epoch_begin", "on_epoch_end"]


def data_arguments(batch_size: int) -> dict[str, Any]:
    """The data, as arguments of `fit` and `evaluate`.

    TensorFlow batches arrays again for each call, which takes longer than
    training on them.
    """
    if keras.config.backend() != "tensorflow":
        return {"x": X, "y": Y, "batch_size": batch_size}
    import tensorflow

    data = tensorflow.data.Dataset.from_tensor_slices((X, Y))
    return {"x": data.batch(batch_size)}


TRAINING, VALIDATION = data_arguments(BATCH), data_arguments(32)
VALIDATED = (X, Y) if "y" in VALIDATION else VALIDATION["x"]


class Interrupted(Exception):  # noqa: N818
    """Raised by a callback."""


class Raise(keras.callbacks.Callback):
    """Raises an error in a hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self.stop)

    def stop(self, *_: Any, **__: Any) -> None:
        """Raise."""
        raise Interrupted


class Clip(keras.callbacks.Callback):
    """Writes to a weight after each batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Clip."""
        kernel = self.model.layers[0].kernel
        kernel.assign(keras.ops.clip(kernel.value, -0.4, 0.4))


@models.seeded
def small() -> keras.Model:
    """A model that has weights without a gradient, too."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.Dense(1),
        ]
    )


MODEL, TWIN = Reused(small), Reused(small)


class Saved(NamedTuple):
    """The state that loading a file must restore.

    Args:
        shown: The weights that the model held.
        raw: Its raw weights.
        samples: The samples of each average.
        replaced: The names of the averages that must restart.
    """

    shown: list[numpy.ndarray]
    raw: list[numpy.ndarray]
    samples: dict[str, list[Any]]
    replaced: set[str]


def quiet(function: Any, *arguments: Any, **options: Any) -> None:
    """Call a function that may be interrupted, and that may warn."""
    with warnings.catch_warnings(), contextlib.suppress(Interrupted):
        warnings.simplefilter("ignore")
        function(*arguments, verbose=0, **options)


class Sequence(RuleBasedStateMachine):
    """Calls that may follow each other, and what holds after each."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.twin = MODEL(), TWIN()
        self.averages = {
            "ema": EMA(DECAY),
            "lawa": LAWA(WINDOW, every_steps=1, swap=False),
        }
        for average in self.averages.values():
            average.set_model(self.model)
        self.samples: dict[str, list[Any]] = {name: [] for name in NAMES}
        self.replaced: set[str] = set()
        self.contexts: list[Any] = []
        # Counts changes of the weights, which contexts then need not restore.
        self.version = 0
        self.saved: Saved | None = None
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name, "a.weights.h5")

    def teardown(self) -> None:
        """Leave the contexts."""
        while self.contexts:
            self.leave()
        self.directory.cleanup()

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        epochs=st.integers(1, 2),
        validation=st.booleans(),
        others=st.lists(st.sampled_from(["clip", *HOOKS]), max_size=2),
        position=st.integers(0, 2),
    )
    def fit(self, names, epochs, validation, others, position):
        """Train with averages, and with callbacks that write or raise."""
        self.version += 1
        walk = Samples()
        self.replaced -= self._restart_replaced(names, others, position)
        for model in (self.model, self.twin):
            callbacks = [Clip() if o == "clip" else Raise(o) for o in others]
            if model is self.model:
                averages = [self.averages[name] for name in names]
                callbacks[position:position] = averages
            else:
                callbacks.insert(0, walk)
            quiet(
                model.fit,
                **TRAINING,
                epochs=epochs,
                shuffle=False,
                validation_data=VALIDATED if validation else None,
                callbacks=callbacks,
            )
        for name in names:
            self.samples[name] += walk.weights

    def _restart_replaced(self, names, others, position):
        """Restart the averages of replaced weights, if training starts."""
        first = next(
            (o for o in others[:position] if o == "on_train_begin"), None
        )
        if first is not None:
            return set()
        restarted = self.replaced & {*names}
        for name in restarted:
            self.samples[name] = []
        return restarted

    @precondition(lambda self: not self.contexts)
    @rule(epochs=st.integers(1, 2))
    def fit_without_an_average(self, epochs):
        """Train the weights that the model holds, which may be an average."""
        self.version += 1
        shown, raw = self._shown(), probe.raw_weights_of(self.model)
        held, inside = probe.swapped_indices(self.model), self._swapped_in()
        self.twin.set_weights(shown)
        for model in (self.model, self.twin):
            quiet(model.fit, **TRAINING, epochs=epochs, shuffle=False)
        # A weight without a gradient was not written to.
        after = self.twin.get_weights()
        same = {i for i in held if numpy.array_equal(after[i], shown[i])}
        self.twin.set_weights(
            [raw[i] if i in same else array for i, array in enumerate(after)]
        )
        self._record_replaced(held - same, inside)

    @rule(
        names=st.lists(st.sampled_from(NAMES), unique=True),
        hook=st.sampled_from([None, *HOOKS]),
        method=st.sampled_from(["evaluate", "predict"]),
    )
    def evaluate(self, names, hook, method):
        """Evaluate or predict, interrupted or not."""
        shown = self._shown()
        callbacks = [self.averages[name] for name in names]
        callbacks += [Raise(hook)] if hook else []
        data = dict(VALIDATION)
        if method == "predict":
            data.pop("y", None)
        quiet(getattr(self.model, method), **data, callbacks=callbacks)
        if hook is None:
            assert equal(self._shown(), shown)

    @rule(name=st.sampled_from(NAMES))
    def apply(self, name):
        """Swap in an average."""
        self.averages[name].apply()
        self._assert_swapped_in(name)

    @rule(name=st.sampled_from(NAMES))
    def restore(self, name):
        """Restore the raw weights."""
        self.averages[name].restore()
        if self.samples[name]:
            assert equal(self._shown(), self.twin.get_weights())

    @rule(name=st.sampled_from(NAMES))
    def enter(self, name):
        """Enter a context in which the model holds an average."""
        found = self._shown(), self.version
        context = self.averages[name].applied()
        context.__enter__()
        self.contexts.append((context, *found))
        self._assert_swapped_in(name)

    @precondition(lambda self: self.contexts)
    @rule()
    def leave(self):
        """Leave the latest context."""
        context, shown, version = self.contexts.pop()
        context.__exit__(None, None, None)
        if self.version == version:
            assert equal(self._shown(), shown)

    @precondition(lambda self: not self.contexts)
    @rule(chosen=st.sets(st.integers(0, 7), min_size=1), value=st.floats(-1, 1))
    def write(self, chosen, value):
        """Write to some weights."""
        self.version += 1
        shown, held = self._shown(), probe.swapped_indices(self.model)
        inside = self._swapped_in()
        written = {i for i in chosen if (shown[i] != value).any()}
        for model in (self.model, self.twin):
            for i in written:
                variable = model.weights[i]
                variable.assign(keras.ops.full(variable.shape, value))
        self._record_replaced(held & written, inside)

    @rule()
    def save(self):
        """Save all to a file."""
        self.model.save_weights(self.path)
        samples = {name: [*walk] for name, walk in self.samples.items()}
        raw = self.twin.get_weights()
        self.saved = Saved(self._shown(), raw, samples, {*self.replaced})

    @precondition(lambda self: self.saved)
    @rule()
    def load(self):
        """Load the latest file."""
        self.version += 1
        self.model.load_weights(self.path)
        assert equal(self._shown(), self.saved.shown)
        self.twin.set_weights(self.saved.raw)
        for name, walk in self.saved.samples.items():
            self.samples[name] = [*walk]
        self.replaced = {*self.saved.replaced}

    @invariant()
    def raw_weights_are_those_of_the_twin(self):
        """Check that no raw weights are lost."""
        probe.attach(self.twin)
        assert equal(probe.raw_weights_of(self.model), self.twin.get_weights())

    @invariant()
    def averages_are_as_defined(self):
        """Check that averages include exactly the steps that were made."""
        for name, average in self.averages.items():
            walk, received = self.samples[name], weights_of(average)
            if not walk:
                assert received == []
            elif name == "ema":
                expected = reference.ema(walk, DECAY)
                assert reference.relative_error(received, expected) < 1e-5
            else:
                expected = reference.mean(walk[-WINDOW:])
                assert reference.relative_error(received, expected) < 1e-5

    def _shown(self):
        probe.attach(self.model)
        return self.model.get_weights()

    def _assert_swapped_in(self, name):
        if self.samples[name]:
            assert probe.is_in_model(self.averages[name])

    def _swapped_in(self):
        """The names of the averages that are swapped in."""
        return {
            name
            for name, average in self.averages.items()
            if probe.is_in_model(average)
        }

    def _record_replaced(self, written, inside):
        """Record the averages whose trained weights were replaced."""
        if any(self.model.weights[i].trainable for i in written):
            self.replaced |= inside
