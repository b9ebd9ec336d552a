"""Which optimizer step is it? Told from `fit`'s hooks, not from the device."""

from dataclasses import dataclass
from typing import Any, Self

import keras


@dataclass(frozen=True)
class Reading:
    """The time of an update, in optimizer steps.

    Args:
        steps: Integer. The time, or what to add to the optimizer's count.
        iterations: Variable that holds the optimizer's count of batches, or
            `None` where `steps` says it all.
        batches_per_step: Integer, the optimizer's gradient accumulation.
    """

    steps: int
    iterations: Any = None
    batches_per_step: int = 1

    def now(self) -> int:
        """The time, read back from the device where only that knows."""
        if self.iterations is None:
            return self.steps
        batches = int(_number(self.iterations))
        return self.steps + batches // self.batches_per_step


@dataclass(frozen=True)
class Pace:
    """How the batches of one `fit` become optimizer steps.

    Args:
        optimizer: The model's optimizer, or `None`.
        iterations: Variable that holds its count of batches, or `None`.
        batches_per_step: Integer, its gradient accumulation.
        batches_per_hook: Integer, `steps_per_execution`.
        batches_in_epoch: Integer, or `None` if nobody knows.
    """

    optimizer: Any = None
    iterations: Any = None
    batches_per_step: int = 1
    batches_per_hook: int = 1
    batches_in_epoch: int | None = None

    @classmethod
    def of(cls, model: Any, batches_in_epoch: int | None) -> Self:
        """The pace of a `fit` of a compiled model."""
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
    def is_known_to_hooks(self) -> bool:
        """Whether hooks tell all: no step is skipped, no group is short."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        may_be_short = (
            self.batches_per_hook > 1 and self.batches_in_epoch is None
        )
        return self.iterations is None or not (scaled or may_be_short)

    def optimizer_steps(self) -> int:
        """The optimizer's count of steps. Waits for the device."""
        return self._optimizer_batches() // self.batches_per_step

    def batches_into_step(self) -> int:
        """The batches whose gradients have been accumulated so far."""
        if self.batches_per_step == 1:
            return 0
        return self._optimizer_batches() % self.batches_per_step

    def counts(self) -> list[float]:
        """What moves whenever the optimizer is stepped, or skips a step."""
        names = {"iteration", "step_counter", "dynamic_scale"}
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        both = {id(v): v for o in (self.optimizer, inner) for v in o.variables}
        return [_number(v) for v in both.values() if v.name in names]

    def _optimizer_batches(self) -> int:
        return 0 if self.iterations is None else int(_number(self.iterations))


class StepClock:
    """Counts optimizer steps over one or several calls of `fit`.

    The hooks tell the host all it needs to know in all but two cases: a
    `LossScaleOptimizer` may skip a step, and the last group of
    `steps_per_execution` may be short where the number of batches is unknown.
    There the optimizer's own count decides, read where the update runs.

    The optimizer's count is not used everywhere because it does not always
    count steps: with a custom `train_step` the compiled optimizer may be idle,
    and on TensorFlow data of unknown length adds one to it in each epoch. An
    idle optimizer is found out after the first batch of a `fit`: none of its
    counts has moved.
    """

    def __init__(self) -> None:
        self.now = 0
        self._offset = 0
        self._pace = Pace()
        self._host_knows = True
        self._batches_into_step = 0
        self._batches_seen = 0
        self._first_counts: list[float] = []

    def begin_fit(self, model: Any, batches_in_epoch: int | None) -> None:
        """Learn how the model's batches become optimizer steps.

        Args:
            model: The compiled model.
            batches_in_epoch: Integer, or `None` if nobody knows.
        """
        self._trust_optimizer()
        self._pace = pace = Pace.of(model, batches_in_epoch)
        self._host_knows = pace.is_known_to_hooks
        self.go_on_from(self.now)
        self._first_counts = [] if self._host_knows else pace.counts()

    def go_on_from(self, now: int) -> None:
        """Continue a count, whose optimizer counts on from where it is.

        Args:
            now: Integer, the time in optimizer steps.
        """
        self.now = now
        self._offset = now - self._pace.optimizer_steps()

    def exact_now(self) -> int:
        """The time, read back from the device where only that knows."""
        self._trust_optimizer()
        return self.now

    def begin_epoch(self) -> None:
        """Read the optimizer's count, where it matters."""
        self._batches_seen = 0
        self._batches_into_step = self._pace.batches_into_step()
        self._trust_optimizer()

    @property
    def asks_the_optimizer(self) -> bool:
        """Whether `end_batches` is going to read the optimizer's counts."""
        return bool(self._first_counts)

    def end_batches(self) -> int:
        """Count the batches that ended with a call of `on_train_batch_end`.

        Returns:
            Integer, the optimizer steps since the last call. Where the
            optimizer's own count decides, an estimate that is good enough to
            tell when an update is due.
        """
        # Not the hook's `batch`: Keras 3.10 gives the first of a group.
        pace = self._pace
        ended = self._batches_seen + pace.batches_per_hook
        if pace.batches_in_epoch is not None:
            ended = min(ended, pace.batches_in_epoch)
        self._batches_into_step += ended - self._batches_seen
        self._batches_seen = ended
        steps, self._batches_into_step = divmod(
            self._batches_into_step, pace.batches_per_step
        )
        self.now += steps
        if self.asks_the_optimizer:
            # One that is built meanwhile has more of them.
            self._host_knows = pace.counts() == self._first_counts
            self._first_counts = []
        return steps

    @property
    def steps_per_hook(self) -> int:
        """The most optimizer steps between two hooks."""
        return -(-self._pace.batches_per_hook // self._pace.batches_per_step)

    def end_fit(self) -> None:
        """Settle the count: of later steps only the caller knows."""
        self._trust_optimizer()
        self._host_knows = True

    def tick(self) -> int:
        """Count one optimizer step of a loop without `fit`."""
        self._host_knows = True  # also where `fit` ended in an exception
        self.now += 1
        return 1

    def reading(self) -> Reading:
        """What an update needs in order to know the time."""
        if self._host_knows:
            return Reading(self.now)
        pace = self._pace
        return Reading(self._offset, pace.iterations, pace.batches_per_step)

    def _trust_optimizer(self) -> None:
        if not self._host_knows:
            self.now = self._offset + self._pace.optimizer_steps()


def _number(variable: Any) -> float:
    # Of a mirrored variable TensorFlow makes a tensor in any scope, an array
    # not in its strategy's.
    tensor = keras.ops.copy(variable.value)
    return float(keras.ops.convert_to_numpy(tensor))


def _iterations(optimizer: Any) -> Any:
    # `optimizer.iterations` is already divided by the accumulation.
    variables = getattr(optimizer, "variables", ())
    return next((v for v in variables if v.name == "iteration"), None)
