"""Counts optimizer steps from the hooks of `fit`, not from the device."""

from dataclasses import dataclass
from typing import Any, Self

import keras


@dataclass(frozen=True)
class UpdateTime:
    """The time of an update, in optimizer steps.

    Args:
        steps: Integer, the time, or the offset to the optimizer's counter.
        iterations: Variable with the optimizer's counter of batches, or `None`
            if `steps` is the time. Defaults to `None`.
        batches_per_step: Integer, the optimizer's gradient accumulation.
            Defaults to 1.
    """

    steps: int
    iterations: Any = None
    batches_per_step: int = 1

    def now(self) -> int:
        """The time. Reads the optimizer's counter from the device if needed."""
        if self.iterations is None:
            return self.steps
        batches = int(_number(self.iterations))
        return self.steps + batches // self.batches_per_step


@dataclass(frozen=True)
class StepCounting:
    """Converts the batches of one `fit` to optimizer steps.

    Args:
        optimizer: The model's optimizer, or `None`.
        iterations: Variable with its counter of batches, or `None`.
        batches_per_step: Integer, its gradient accumulation.
        batches_per_hook: Integer, `steps_per_execution`.
        batches_in_epoch: Integer, or `None` if unknown.
    """

    optimizer: Any = None
    iterations: Any = None
    batches_per_step: int = 1
    batches_per_hook: int = 1
    batches_in_epoch: int | None = None

    @classmethod
    def of(cls, model: Any, batches_in_epoch: int | None) -> Self:
        """Create it for a `fit` of a compiled model."""
        optimizer: Any = getattr(model, "optimizer", None)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        accumulated = getattr(inner, "gradient_accumulation_steps", None)
        return cls(
            optimizer,
            _iterations(inner),
            accumulated or 1,
            model.steps_per_execution,
            batches_in_epoch,
        )

    @property
    def is_known_from_hooks(self) -> bool:
        """Whether no step can be skipped, and no execution can be shorter."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        may_be_short = (
            self.batches_per_hook > 1 and self.batches_in_epoch is None
        )
        return self.iterations is None or not (scaled or may_be_short)

    def optimizer_steps(self) -> int:
        """The optimizer's counter of steps. Waits for the device."""
        return self._optimizer_batches() // self.batches_per_step

    def batches_into_step(self) -> int:
        """The number of batches since the last step. Waits for the device."""
        if self.batches_per_step == 1:
            return 0
        return self._optimizer_batches() % self.batches_per_step

    def optimizer_state(self) -> list[float]:
        """Numbers that change whenever the optimizer makes or skips a step."""
        names = {"iteration", "step_counter", "dynamic_scale"}
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        both = {id(v): v for o in (self.optimizer, inner) for v in o.variables}
        return [_number(v) for v in both.values() if v.name in names]

    def _optimizer_batches(self) -> int:
        return 0 if self.iterations is None else int(_number(self.iterations))


class StepClock:
    """Counts optimizer steps over one or several calls of `fit`.

    The hooks are sufficient in all but two cases: a `LossScaleOptimizer` may
    skip a step, and the last execution of `steps_per_execution` batches may be
    shorter if the number of batches is unknown. Then the optimizer's counter
    decides, which is read where the update runs.

    The optimizer's counter is not always used because it does not always count
    steps: with a custom `train_step` the compiled optimizer may be unused, and
    on TensorFlow data of unknown length increments it once per epoch. An unused
    optimizer is detected after the first batch of a `fit`: its state has not
    changed.
    """

    def __init__(self) -> None:
        self.now = 0
        self._offset = 0
        self._counting = StepCounting()
        self._host_knows = True
        self._batches_into_step = 0
        self._batches_seen = 0
        self._initial_state: list[float] = []

    def start_fit(self, model: Any, batches_in_epoch: int | None) -> None:
        """Prepare to convert the model's batches to optimizer steps.

        Args:
            model: The compiled model.
            batches_in_epoch: Integer, or `None` if unknown.
        """
        self._sync()
        self._counting = counting = StepCounting.of(model, batches_in_epoch)
        self._host_knows = counting.is_known_from_hooks
        self.continue_from(self.now)
        known = self._host_knows
        self._initial_state = [] if known else counting.optimizer_state()

    def continue_from(self, now: int) -> None:
        """Set the time. The optimizer's counter keeps its value.

        Args:
            now: Integer, the time in optimizer steps.
        """
        self.now = now
        self._offset = now - self._counting.optimizer_steps()

    def exact_now(self) -> int:
        """The time. Reads the optimizer's counter from the device if needed."""
        self._sync()
        return self.now

    def start_epoch(self) -> None:
        """Prepare to count batches. Reads the optimizer's counter if needed."""
        self._batches_seen = 0
        self._batches_into_step = self._counting.batches_into_step()
        self._sync()

    @property
    def reads_optimizer(self) -> bool:
        """Whether the next `end_batches` reads the state of the optimizer."""
        return bool(self._initial_state)

    def end_batches(self) -> int:
        """Count the batches that ended with a call of `on_train_batch_end`.

        Returns:
            Integer, the optimizer steps since the last call. If the
            optimizer's counter decides, this is an estimate that is accurate
            enough to decide when an update is due.
        """
        # Not the hook's `batch`: Keras 3.10 passes the first of an execution.
        counting = self._counting
        ended = self._batches_seen + counting.batches_per_hook
        if counting.batches_in_epoch is not None:
            ended = min(ended, counting.batches_in_epoch)
        self._batches_into_step += ended - self._batches_seen
        self._batches_seen = ended
        steps, self._batches_into_step = divmod(
            self._batches_into_step, counting.batches_per_step
        )
        self.now += steps
        if self.reads_optimizer:
            # An optimizer that was built since then has more variables.
            state = counting.optimizer_state()
            self._host_knows = state == self._initial_state
            self._initial_state = []
        return steps

    @property
    def steps_per_hook(self) -> int:
        """The maximum number of optimizer steps between two hooks."""
        counting = self._counting
        return -(-counting.batches_per_hook // counting.batches_per_step)

    def end_fit(self) -> None:
        """Finish counting. Later steps are counted by `tick`."""
        self._sync()
        self._host_knows = True

    def tick(self) -> int:
        """Count one optimizer step of a custom training loop."""
        self._host_knows = True  # also if `fit` ended in an exception
        self.now += 1
        return 1

    def update_time(self) -> UpdateTime:
        """The time of an update that runs now."""
        if self._host_knows:
            return UpdateTime(self.now)
        counting = self._counting
        return UpdateTime(
            self._offset, counting.iterations, counting.batches_per_step
        )

    def _sync(self) -> None:
        if not self._host_knows:
            self.now = self._offset + self._counting.optimizer_steps()


def _number(variable: Any) -> float:
    # On TensorFlow a mirrored variable can be converted to a tensor in any
    # scope, but not to an array in the scope of its strategy.
    tensor = keras.ops.copy(variable.value)
    return float(keras.ops.convert_to_numpy(tensor))


def _iterations(optimizer: Any) -> Any:
    # `optimizer.iterations` is already divided by the accumulation.
    variables = getattr(optimizer, "variables", ())
    return next((v for v in variables if v.name == "iteration"), None)
