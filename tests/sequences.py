"""Random sequences of whatever a user does to a model and its averages.

A twin of the model is trained the same way without averages. So at any time the
raw weights are the twin's, bit for bit, and an average is that of the twin's
weights by its definition.
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


def given(batch_size: int) -> dict[str, Any]:
    """The data, as arguments of `fit` and `evaluate`.

    TensorFlow makes batches of arrays anew for each call, which takes longer
    than training on them.
    """
    if keras.config.backend() != "tensorflow":
        return {"x": X, "y": Y, "batch_size": batch_size}
    import tensorflow

    data = tensorflow.data.Dataset.from_tensor_slices((X, Y))
    return {"x": data.batch(batch_size)}


TRAINING, VALIDATION = given(BATCH), given(32)
VALIDATED = (X, Y) if "y" in VALIDATION else VALIDATION["x"]


class Interrupted(Exception):  # noqa: N818
    """What a callback raises."""


class Raise(keras.callbacks.Callback):
    """Raises in a hook."""

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
    """With weights that no gradient trains."""
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
    """What a file is to give back.

    Args:
        shown: What the model held.
        raw: Its raw weights.
        samples: Of each average.
        replaced: The names of the averages that are to begin anew.
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
    """What may happen, and what holds at any time."""

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
        # Of the weights; what a context found comes back if it is the same.
        self.version = 0
        self.saved: Saved | None = None
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "a.weights.h5")

    def teardown(self) -> None:
        """Leave the contexts."""
        while self.contexts:
            self.leave()
        self.folder.cleanup()

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        epochs=st.integers(1, 2),
        validation=st.booleans(),
        others=st.lists(st.sampled_from(["clip", *HOOKS]), max_size=2),
        place=st.integers(0, 2),
    )
    def fit(self, names, epochs, validation, others, place):
        """Train with averages, and with callbacks that write or raise."""
        self.version += 1
        walk = Samples()
        self.replaced -= self._begin_anew(names, others, place)
        for model in (self.model, self.twin):
            callbacks = [Clip() if o == "clip" else Raise(o) for o in others]
            if model is self.model:
                averages = [self.averages[name] for name in names]
                callbacks[place:place] = averages
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

    def _begin_anew(self, names, others, place):
        """The averages of replaced weights that get to begin the training."""
        first = next((o for o in others[:place] if o == "on_train_begin"), None)
        if first is not None:
            return set()
        begun = self.replaced & {*names}
        for name in begun:
            self.samples[name] = []
        return begun

    @precondition(lambda self: not self.contexts)
    @rule(epochs=st.integers(1, 2))
    def fit_without_an_average(self, epochs):
        """Train what the model holds, which may be an average."""
        self.version += 1
        shown, raw = self._shown(), probe.raw_weights_of(self.model)
        held, inside = probe.indices_in(self.model), self._inside()
        self.twin.set_weights(shown)
        for model in (self.model, self.twin):
            quiet(model.fit, **TRAINING, epochs=epochs, shuffle=False)
        # A weight without a gradient was not written to.
        after = self.twin.get_weights()
        same = {i for i in held if numpy.array_equal(after[i], shown[i])}
        self.twin.set_weights(
            [raw[i] if i in same else array for i, array in enumerate(after)]
        )
        self._note_replaced(held - same, inside)

    @rule(
        names=st.lists(st.sampled_from(NAMES), unique=True),
        hook=st.sampled_from([None, *HOOKS]),
        method=st.sampled_from(["evaluate", "predict"]),
    )
    def evaluate(self, names, hook, method):
        """Evaluate or predict, to the end or not."""
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
        """Put an average in by hand."""
        self.averages[name].apply()
        self._assert_in(name)

    @rule(name=st.sampled_from(NAMES))
    def restore(self, name):
        """Take averages out by hand."""
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
        self._assert_in(name)

    @precondition(lambda self: self.contexts)
    @rule()
    def leave(self):
        """Leave it."""
        context, shown, version = self.contexts.pop()
        context.__exit__(None, None, None)
        if self.version == version:
            assert equal(self._shown(), shown)

    @precondition(lambda self: not self.contexts)
    @rule(chosen=st.sets(st.integers(0, 7), min_size=1), value=st.floats(-1, 1))
    def write(self, chosen, value):
        """Write to some weights."""
        self.version += 1
        shown, held = self._shown(), probe.indices_in(self.model)
        inside = self._inside()
        written = {i for i in chosen if (shown[i] != value).any()}
        for model in (self.model, self.twin):
            for i in written:
                variable = model.weights[i]
                variable.assign(keras.ops.full(variable.shape, value))
        self._note_replaced(held & written, inside)

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
        """Whatever happened, nothing is lost."""
        probe.attach(self.twin)
        assert equal(probe.raw_weights_of(self.model), self.twin.get_weights())

    @invariant()
    def averages_are_as_defined(self):
        """Of exactly the steps that there were."""
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

    def _assert_in(self, name):
        if self.samples[name]:
            assert probe.is_in_model(self.averages[name])

    def _inside(self):
        """The names of the averages in the model."""
        return {
            name
            for name, average in self.averages.items()
            if probe.is_in_model(average)
        }

    def _note_replaced(self, written, inside):
        """Note whose trained weights were replaced."""
        if any(self.model.weights[i].trainable for i in written):
            self.replaced |= inside
