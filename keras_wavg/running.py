"""The average of one model, as its training goes on."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy

from keras_wavg import swapping
from keras_wavg.averages.counting import Counters
from keras_wavg.backend import attach_weights, on_devices
from keras_wavg.clock import StepClock
from keras_wavg.included import averaged_variables
from keras_wavg.plan import Plan
from keras_wavg.shadow import Shadow
from keras_wavg.state import VERSION, Counts, State, from_dict, require_finite
from keras_wavg.warning import warn


class RunningAverage:
    """Updates a shadow when an update is due, and knows how to go on.

    Args:
        model: A Keras model.
        plan: A `Plan`, whose name is unique among the averages of the model.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        # Weak, because the model holds this, to have it saved.
        self._model = weakref.ref(model)
        self._plan = plan
        self._sampling = plan.sampling
        self._in_epoch = False
        self.shadow: Shadow | None = None
        self.clock = StepClock()
        self.epochs = 0
        self._begin_anew()

    @property
    def name(self) -> str:
        """By which files tell it apart."""
        return self._plan.name

    @property
    def model(self) -> Any:
        """The model, or `None` if it is gone."""
        return self._model()

    # Time

    def begin_fit(self, batches_in_epoch: int | None) -> None:
        """Get ready to count.

        Args:
            batches_in_epoch: Integer, or `None` if nobody knows.
        """
        if self.shadow is not None and not self.shadow.bind():
            self._warn_of_a_new_beginning(
                "the model has other weights than those that were averaged"
            )
            self._begin_anew()
        self.clock.begin_fit(self.model, batches_in_epoch)
        self.begin_if_due()

    def end_fit(self) -> None:
        """Leave the counting to `tick`."""
        self.clock.end_fit()

    def begin_epoch(self, epoch: int) -> None:
        """Count the batches of an epoch from its first on.

        Args:
            epoch: Integer, what `fit` calls it. It may be ahead of the count,
                where `initial_epoch` says so.
        """
        self._in_epoch = True
        self.epochs = max(self.epochs, epoch)
        self.clock.begin_epoch()

    def end_batch(self) -> None:
        """Count the steps of the batch, and update the average if it is due."""
        if self.clock.asks_the_optimizer:
            attach_weights(self.model)
        self._after_steps(self.clock.end_batches())

    def end_epoch(self) -> None:
        """Count the epoch, once, and update the average if it is due."""
        if self._in_epoch:
            self._in_epoch = False
            self._count(epochs=1)

    def tick(self) -> None:
        """Count an optimizer step, or an epoch, of a loop without `fit`."""
        self._after_steps(self.clock.tick())
        self._count(epochs=self._sampling.epochs_a_tick)

    def begin_if_due(self) -> None:
        """Start at the weights of now, if that is what the plan asks."""
        now, start = self.clock.now, self._sampling.start
        if (
            self._plan.method.starts_from_initial
            and now <= start < now + self.clock.steps_per_hook
        ):
            if not self.model.built:
                self._refuse_an_unbuilt_model()
            self._current_shadow().begin()

    def begin_anew_if_replaced(self) -> None:
        """Forget an average whose model was given other weights meanwhile."""
        if self.shadow is not None and self.shadow.replaced:
            paths = self.shadow.replaced
            self._warn_of_a_new_beginning(
                f"{len(paths)} weights, '{paths[0]}' the first, were replaced "
                "while they held the average"
            )
            self._begin_anew()
            self.begin_if_due()

    def samples(self) -> tuple[Sequence[float], int]:
        """The times of the samples and that of now, in optimizer steps."""
        last, count = self._current_shadow().counters
        if not self._plan.method.counts_samples:
            count = -(-count // self._sampling.every)
        times = self._sampling.times(int(count), int(last))
        return times, self.clock.exact_now()

    # Files

    def save(self) -> State:
        """All that it takes to go on from here."""
        shadow, counters = self.shadow, Counters(self._sampling.start, 0)
        averages: Mapping[int, Any] = {}
        raw: Mapping[int, Any] = {}
        kept: Mapping[str, Mapping[int, Any]] = {}
        begun, replaced = False, 0
        if shadow is not None and shadow.bind():
            counters, begun = shadow.counters, shadow.begun
            averages, raw, kept = shadow.save()
            replaced = len(shadow.replaced)
        counts = Counts(
            version=VERSION,
            now=self.clock.exact_now(),
            epochs=self.epochs,
            pending=self._pending,
            **counters._asdict(),
            begun=int(begun),
            replaced=replaced,
        )
        return State(counts, averages, raw, kept)

    def save_on_devices(self) -> dict[str, Any]:
        """The same as a flat dict of tensors, laid out as the weights are."""
        variables = averaged_variables(self.model, self._plan.include)

        def convert(array: Any, index: int | None) -> Any:
            variable = None if index is None else variables[index]
            return on_devices(array, variable, self.model)

        return self.save().to_dict(convert)

    def layout(self) -> Callable[[str], Any]:
        """Function from a key of `State.to_dict` to a tensor laid out so."""
        variables = averaged_variables(self.model, self._plan.include)
        count = on_devices(numpy.array(0), None, self.model)

        def like(key: str) -> Any:
            _, _, index = key.rpartition("_")
            is_known = index.isdecimal() and int(index) < len(variables)
            return variables[int(index)].value if is_known else count

        return like

    def check(self, arrays: Mapping[str, Any]) -> State | None:
        """Read a state, and refuse what `load` would refuse.

        Args:
            arrays: Dict of arrays, a state's `to_dict()`, or empty.

        Returns:
            A `State`, or `None` for an empty dict.

        Raises:
            ValueError: If it is not the state of such an average.
        """
        if not arrays:
            return None
        variables = averaged_variables(self.model, self._plan.include)
        state = from_dict(arrays, variables, self._plan.method.keeps)
        require_finite(state, variables)
        return state

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Go on from a state, once the model's weights have been loaded.

        Args:
            arrays: Dict of arrays, a state's `to_dict()`. Empty: begin anew.

        Raises:
            ValueError: If it is not the state of such an average.
        """
        state = self.check(arrays)
        shadow = self.shadow
        if shadow is not None:
            swapping.forget(shadow)
        self._begin_anew()
        if state is None:
            self.begin_if_due()
            return
        if shadow is not None and state.counts.steps and shadow.bind():
            # What it has compiled serves on.
            self.shadow = shadow
        self._go_on_from(state)

    def _go_on_from(self, state: State) -> None:
        self.clock.go_on_from(state.counts.now)
        self.epochs = state.counts.epochs
        self._pending = state.counts.pending
        if state.counts.begun:
            self._current_shadow().load(state)
        if self.shadow is not None:
            # The file does not say which.
            self.shadow.replaced = ["unknown"] * state.counts.replaced
            if state.overwritten:
                self.shadow.overwrite()

    # Updates

    def _begin_anew(self) -> None:
        self.shadow = None
        self.clock.go_on_from(0)
        self.epochs = 0
        self._pending = self._sampling.head_start
        self._updated = False

    def _after_steps(self, steps: int) -> None:
        if self.clock.now <= self._sampling.start:
            self.begin_if_due()
        self._count(steps=steps)
        shadow = self.shadow
        if shadow is not None and self._is_overwriting_due(steps):
            shadow.overwrite()

    def _count(self, *, steps: int = 0, epochs: int = 0) -> None:
        self.epochs += epochs
        self._pending = self._sampling.pending(
            self._pending,
            ended=(steps, epochs),
            now=(self.clock.now, self.epochs),
        )
        if self._pending >= self._sampling.every:
            self._pending %= self._sampling.every
            self._begun_shadow().update(self.clock.reading())

    def _is_overwriting_due(self, steps: int) -> bool:
        every = self._plan.overwrite_every
        counted = self.clock.now - self._sampling.start
        if every is None or counted // every == (counted - steps) // every:
            return False
        return self.shadow is not None and self.shadow.exists

    def _begun_shadow(self) -> Shadow:
        if not self._updated:
            self._require_beginning()
            self._updated = True
        return self._current_shadow()

    def _current_shadow(self) -> Shadow:
        if self.shadow is None:
            self.shadow = Shadow(self.model, self._plan)
        return self.shadow

    def _require_beginning(self) -> None:
        if not self._plan.method.starts_from_initial:
            return
        if self.shadow is None or not self.shadow.bind():
            self._refuse_an_unbuilt_model()

    def _warn_of_a_new_beginning(self, reason: str) -> None:
        warn(
            f"The average '{self.name}' starts anew: {reason}.",
        )

    def _refuse_an_unbuilt_model(self) -> NoReturn:
        raise ValueError(
            "An average that starts from the weights before training needs a "
            "model that is built by then. Received: a model without (all of) "
            "its weights. Give it an `Input`, or call it on data or "
            "`model.build(input_shape)` before `fit` or `set_model`, or take "
            "an average without a beginning: `EMA` with `bias_correction=True`."
        )
