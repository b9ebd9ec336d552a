"""The average of one model during training: what is updated, and when."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy

from keras_wavg import swapping
from keras_wavg.averaged_weights import AveragedWeights
from keras_wavg.averages.update_rule import Counters
from keras_wavg.backend import sync_weights, to_tensor
from keras_wavg.clock import StepClock
from keras_wavg.plan import Plan
from keras_wavg.state import VERSION, Counts, State, from_dict, require_finite
from keras_wavg.warning import warn


class ModelAverage:
    """Updates the average of a model when an update is due.

    It is saved with the model, and training resumes from it.

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
        self.averaged: AveragedWeights | None = None
        self.clock = StepClock()
        self.epochs = 0
        self._restart()

    @property
    def name(self) -> str:
        """The name that identifies the average in a saved model."""
        return self._plan.name

    @property
    def model(self) -> Any:
        """The model, or `None` if it was deleted."""
        return self._model()

    # Time

    def start_fit(self, batches_in_epoch: int | None) -> None:
        """Prepare to count steps and epochs.

        Args:
            batches_in_epoch: Integer, or `None` if unknown.
        """
        if self.averaged is not None and not self.averaged.refresh():
            self._warn_of_restart(
                "the model has other weights than those that were averaged"
            )
            self._restart()
        self.clock.start_fit(self.model, batches_in_epoch)
        self.start_if_due()
        if self._plan.target is not None and self.model.built:
            self._current_averaged().start_target()

    def end_fit(self) -> None:
        """Count only calls of `tick` from now on."""
        self.clock.end_fit()

    def start_epoch(self, epoch: int) -> None:
        """Count the batches of a new epoch.

        Args:
            epoch: Integer, the index that `fit` passes. With `initial_epoch`
                it may be ahead of the count.
        """
        self._in_epoch = True
        self.epochs = max(self.epochs, epoch)
        self.clock.start_epoch()

    def end_batch(self) -> None:
        """Count the steps of a batch, and update the average if due."""
        if self.clock.reads_optimizer:
            sync_weights(self.model)
        self._after_steps(self.clock.end_batches())

    def end_epoch(self) -> None:
        """Count an epoch once, and update the average if due."""
        if self._in_epoch:
            self._in_epoch = False
            self._count(epochs=1)

    def tick(self) -> None:
        """Count a step, or an epoch, of a custom training loop."""
        self._after_steps(self.clock.tick())
        self._count(epochs=self._sampling.epochs_per_update)

    def start_if_due(self) -> None:
        """Start from the current weights, if the method needs that now."""
        now, start = self.clock.now, self._sampling.start_step
        if (
            self._plan.method.starts_from_initial
            and now <= start < now + self.clock.steps_per_hook
        ):
            if not self.model.built:
                self._refuse_an_unbuilt_model()
            self._current_averaged().start()

    def restart_if_replaced(self) -> None:
        """Restart if weights were replaced while they held the average."""
        if self.averaged is not None and self.averaged.replaced:
            paths = self.averaged.replaced
            self._warn_of_restart(
                f"{len(paths)} weights (the first is '{paths[0]}') were "
                "replaced while they held the average"
            )
            self._restart()
            self.start_if_due()

    def samples(self) -> tuple[Sequence[float], int]:
        """The times of the samples and the current time, in optimizer steps."""
        last, count = self._current_averaged().counters
        if not self._plan.method.counts_samples:
            count = -(-count // self._sampling.every)
        times = self._sampling.times(int(count), int(last))
        return times, self.clock.exact_now()

    # Files

    def save(self) -> State:
        """The state from which training can resume."""
        averaged = self.averaged
        counters = Counters(self._sampling.start_step, 0)
        averages: Mapping[int, Any] = {}
        raw: Mapping[int, Any] = {}
        extra: Mapping[str, Mapping[int, Any]] = {}
        begun, replaced = False, 0
        if averaged is not None and averaged.refresh():
            counters, begun = averaged.counters, averaged.started
            averages, raw, extra = averaged.save()
            replaced = len(averaged.replaced)
        counts = Counts(
            version=VERSION,
            now=self.clock.exact_now(),
            epochs=self.epochs,
            pending=self._pending,
            **counters._asdict(),
            begun=int(begun),
            replaced=replaced,
        )
        return State(counts, averages, raw, extra)

    def save_on_devices(self) -> dict[str, Any]:
        """The state as a flat dict of tensors, placed like the weights."""
        variables = self._plan.variables(self.model)

        def convert(array: Any, index: int | None) -> Any:
            variable = None if index is None else variables[index]
            return to_tensor(array, variable, self.model)

        return self.save().to_dict(convert)

    def layout(self) -> Callable[[str], Any]:
        """Function from a key of `State.to_dict` to a tensor placed like it."""
        variables = self._plan.variables(self.model)
        count = to_tensor(numpy.array(0), None, self.model)

        def like(key: str) -> Any:
            _, _, index = key.rpartition("_")
            is_known = index.isdecimal() and int(index) < len(variables)
            return variables[int(index)].value if is_known else count

        return like

    def check(self, arrays: Mapping[str, Any]) -> State | None:
        """Check a state as `load` does.

        Args:
            arrays: Dict of arrays, a state's `to_dict()`, or empty.

        Returns:
            A `State`, or `None` for an empty dict.

        Raises:
            ValueError: If it is not a state of this kind of average.
        """
        if not arrays:
            return None
        variables = self._plan.variables(self.model)
        state = from_dict(arrays, variables, self._plan.method.extra_names)
        require_finite(state, variables)
        return state

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Continue from a state, after the model's weights were loaded.

        Args:
            arrays: Dict of arrays, a state's `to_dict()`. If empty, the
                average restarts.

        Raises:
            ValueError: If it is not a state of this kind of average.
        """
        state = self.check(arrays)
        averaged = self.averaged
        if averaged is not None:
            swapping.forget(averaged)
        self._restart()
        if state is None:
            self.start_if_due()
            return
        if averaged is not None and state.counts.steps and averaged.refresh():
            # Keep what it has compiled.
            self.averaged = averaged
        self._continue_from(state)

    def _continue_from(self, state: State) -> None:
        self.clock.continue_from(state.counts.now)
        self.epochs = state.counts.epochs
        self._pending = state.counts.pending
        if state.counts.begun:
            self._current_averaged().load(state)
        if self.averaged is not None:
            # The file has only their number.
            self.averaged.replaced = ["unknown"] * state.counts.replaced
            if state.overwritten:
                self.averaged.overwrite()

    # Updates

    def _restart(self) -> None:
        self.averaged = None
        self.clock.continue_from(0)
        self.epochs = 0
        self._pending = self._sampling.phase
        self._updated = False

    def _after_steps(self, steps: int) -> None:
        if self.clock.now <= self._sampling.start_step:
            self.start_if_due()
        self._count(steps=steps)

    def _count(self, *, steps: int = 0, epochs: int = 0) -> None:
        self.epochs += epochs
        ended, now = (steps, epochs), (self.clock.now, self.epochs)
        self._pending = self._sampling.pending(
            self._pending, ended=ended, now=now
        )
        if self._pending >= self._sampling.every:
            self._pending %= self._sampling.every
            self._started_averaged().update(self.clock.update_time())
        overwriting = self._plan.overwriting
        if overwriting is not None and overwriting.is_due(ended=ended, now=now):
            self._overwrite()

    def _overwrite(self) -> None:
        if self.averaged is not None and self.averaged.exists:
            self.averaged.overwrite()

    def _started_averaged(self) -> AveragedWeights:
        if not self._updated:
            self._require_start()
            self._updated = True
        return self._current_averaged()

    def _current_averaged(self) -> AveragedWeights:
        if self.averaged is None:
            self.averaged = AveragedWeights(self.model, self._plan)
        return self.averaged

    def _require_start(self) -> None:
        if not self._plan.method.starts_from_initial:
            return
        if self.averaged is None or not self.averaged.refresh():
            self._refuse_an_unbuilt_model()

    def _warn_of_restart(self, reason: str) -> None:
        warn(
            f"The average '{self.name}' restarts: {reason}.",
        )

    def _refuse_an_unbuilt_model(self) -> NoReturn:
        raise ValueError(
            "An average that starts from the weights before training needs a "
            "built model. Received: a model some of whose weights do not exist "
            "yet. Add an `Input` layer, call the model on data, or call "
            "`model.build(input_shape)` before `fit` or `set_model`. Or use "
            "`EMA` with `bias_correction=True`, which does not start from "
            "these weights."
        )
