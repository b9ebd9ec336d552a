"""Averages on torch: one fused kernel an update, on CPU and on GPU."""

from collections.abc import Sequence
from typing import Any

import keras
import torch

from keras_wavg.backend.arrivals import Arrivals
from keras_wavg.backend.counting import Counters, advance
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule


class Averages:
    """Float32 averages of variables, on their devices.

    Args:
        variables: Keras variables of floating type.
        schedule: A `Schedule`.
        start: Integer, the optimizer step from which samples count.
        device: `None` or `"cpu"`, see `keras_wavg.backend`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedule: Schedule,
        start: int,
        device: str | None = None,
    ) -> None:
        self._variables = list(variables)
        self._schedule = schedule
        self._weights = [v.value.detach() for v in self._variables]
        self._averages = [
            torch.zeros_like(
                w,
                dtype=_average_dtype(w),
                memory_format=torch.contiguous_format,
                device=device,
            )
            for w in self._weights
        ]
        self._counters = Counters(
            *(
                torch.tensor(n, device=self._averages[0].device)
                for n in (start, 0, 0)
            )
        )
        self._arrivals = Arrivals() if device else None

    @property
    def counters(self) -> Counters:
        """The counts, as integers. Waits for the device."""
        self._fold_arrivals()
        return Counters(*map(int, self._counters))

    def bind(self, model: Any) -> None:
        """Take hold of the parameters, in case they were replaced."""
        del model
        self._weights = [v.value.detach() for v in self._variables]

    @torch.no_grad()
    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""
        del model
        self._fold_arrivals()
        torch._foreach_copy_(self._averages, self._weights)

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the averages and counts be these, copied."""
        self._fold_arrivals()
        for own, average in zip(self._averages, averages, strict=True):
            own.copy_(keras.ops.convert_to_tensor(average).detach())
        for own, count in zip(self._counters, counters, strict=True):
            own.fill_(count)

    @torch.no_grad()
    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, if all are finite."""
        del model
        now = reading.steps
        if reading.iterations is not None:
            batches = reading.iterations.value.detach()
            now = now + batches // reading.batches_per_step
        if self._arrivals is None:
            self._fold(now, self._weights)
        else:
            self._fold_arrivals()
            self._arrivals.send(now, self._weights)

    def read(self) -> list[torch.Tensor]:
        """The averages in the order and shapes of the variables."""
        self._fold_arrivals()
        return list(self._averages)

    def are_in_model(self) -> bool:
        """Whether the variables are the averages, each in its own dtype."""
        return all(
            torch.equal(average.to(weight.dtype), weight.to(average.device))
            for average, weight in zip(self.read(), self._weights, strict=True)
        )

    def snapshot(self) -> list[torch.Tensor]:
        """The values of the variables, safe from what happens to them next."""
        return [
            weight.to(average.device, copy=True)
            for weight, average in zip(
                self._weights, self._averages, strict=True
            )
        ]

    def _fold_arrivals(self) -> None:
        if self._arrivals is not None and self._arrivals.expected:
            self._fold(*self._arrivals.receive())

    @torch.no_grad()
    def _fold(self, now: Any, weights: list[torch.Tensor]) -> None:
        samples = [
            weight.to(average.dtype).contiguous()
            for weight, average in zip(weights, self._averages, strict=True)
        ]
        # Keras' operations move what they get to the device of its choice.
        with keras.device(str(self._averages[0].device)):
            self._counters, coefficient, take = advance(
                self._counters, now, _all_finite(samples), self._schedule
            )
        _lerp(self._averages, samples, coefficient, take)


def randomness_kept() -> Any:
    """Context that gives the state of the host's generator back.

    Each `DataLoader` draws a seed from it, so that reading data changes what
    `Dropout` and shuffling do next.
    """
    return torch.random.fork_rng(devices=[])


def _all_finite(tensors: list[torch.Tensor]) -> torch.Tensor:
    # A norm is finite only if each element is (and below 1e19 in float32).
    norms = torch._foreach_norm(tensors, 2)
    return torch.isfinite(torch.stack(norms).sum())


def _lerp(
    averages: list[torch.Tensor],
    samples: list[torch.Tensor],
    coefficient: torch.Tensor,
    take: torch.Tensor,
) -> None:
    """`average += coefficient * (sample - average)`, or nothing.

    `torch._foreach_lerp_` wants its coefficient on the host and cannot be
    called off by the device. The kernel of fused SGD takes both from the
    device: with a weight decay of 1, ascending the "gradient" `sample` moves a
    parameter by `-lr * (parameter - sample)`.
    """
    for dtype in {average.dtype for average in averages}:
        pairs = zip(averages, samples, strict=True)
        chosen = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._fused_sgd_(
            [average for average, _ in chosen],
            [sample for _, sample in chosen],
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=coefficient,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            found_inf=torch.logical_not(take).float(),
        )


def _average_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
