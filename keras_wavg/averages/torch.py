"""Averages on torch: fused operations on flat tensors."""

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import keras
import torch

from keras_wavg.averages.async_copies import AsyncCopies
from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import SMALL
from keras_wavg.averages.update_rule import Counters, advance
from keras_wavg.backend import local_part
from keras_wavg.clock import UpdateTime

# A block of this size stays in the CPU cache during an update.
_BLOCK = 1 << 20


@final
class Averages(DeviceAverages):
    """Averages of variables on their devices."""

    def _allocate(self, start: int) -> None:
        self._weights = self._local_weights()
        self._groups = _groups(self._weights)
        self._flat = [
            [
                _flattened([self._weights[i] for i in group]).to(
                    self._device, copy=True
                )
                for group in self._groups
            ]
            for _ in self._schedules
        ]
        self._averages = [self._views(flat) for flat in self._flat]
        self._check_finite()
        device = self._flat[0][0].device
        self._counters = Counters(
            *(torch.tensor(n, device=device) for n in (start, 0))
        )
        self._copies = AsyncCopies() if self._device else None

    @property
    def counters(self) -> Counters:
        """The counters, as integers. Waits for the device."""
        self._finish_update()
        return Counters(*map(int, self._counters))

    def locate_weights(self, model: Any) -> None:
        """Look up the parameters, which may have been replaced."""
        del model
        self._weights = self._local_weights()

    @torch.no_grad()
    def start(self, model: Any) -> None:
        """Set the averages to the current weights."""
        del model
        self._finish_update()
        for averages in self._averages:
            torch._foreach_copy_(averages, self._weights)
        self._check_finite()

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        self._finish_update()
        for own, average in zip(self._averages[index], averages, strict=True):
            part = local_part(average)
            own.copy_(keras.ops.convert_to_tensor(part).detach())
        self._check_finite()

    def _load_counters(self, counters: Counters) -> None:
        for own, count in zip(self._counters, counters, strict=True):
            own.fill_(count)

    @torch.no_grad()
    def update(self, model: Any, time: UpdateTime) -> None:
        """Move the averages towards the current weights, where finite."""
        del model
        now = time.steps
        if time.iterations is not None:
            batches = time.iterations.value.detach()
            now = now + batches // time.batches_per_step
        if self._copies is None:
            self._move_averages(now, self._weights)
        else:
            self._finish_update()
            self._copies.start(now, self._weights)

    def read(self, index: int = 0) -> list[Any]:
        """Copies of an average, in the order and shapes of the variables."""
        self._finish_update()
        return [average.clone() for average in self._averages[index]]

    def _finish_update(self) -> None:
        if self._copies is not None and self._copies.are_pending:
            self._move_averages(*self._copies.wait())

    @torch.no_grad()
    def _move_averages(self, now: Any, weights: list[torch.Tensor]) -> None:
        # Keras' operations move their arguments to the current device.
        with keras.device(str(self._counters.last.device)):
            self._counters, coefficients = advance(
                self._counters, now, self._schedules
            )
        for group, is_finite, *averages in zip(
            self._groups, self._are_finite, *self._flat, strict=True
        ):
            sample = _flattened([weights[i] for i in group])
            blocks = zip(
                sample.unsafe_split(_BLOCK),
                *(average.unsafe_split(_BLOCK) for average in averages),
                strict=True,
            )
            for sampled, *parts in blocks:
                move = (
                    _fastest_move(sampled) if is_finite else _move_and_replace
                )
                for part, coefficient in zip(parts, coefficients, strict=True):
                    move(part, sampled, coefficient.to(part.dtype))

    def _local_weights(self) -> list[torch.Tensor]:
        return [local_part(v.value.detach()) for v in self._variables]

    def _views(self, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """An average in the order and shapes of the variables."""
        views: dict[int, torch.Tensor] = {}
        for tensor, group in zip(flat, self._groups, strict=True):
            sizes = [self._weights[i].numel() for i in group]
            for i, part in zip(group, tensor.split(sizes), strict=True):
                views[i] = part.view(self._weights[i].shape)
        return [views[i] for i in range(len(self._weights))]

    def _check_finite(self) -> None:
        # A finite average stays finite and need not be checked again.
        self._are_finite = [
            all(bool(average.isfinite().all()) for average in averages)
            for averages in zip(*self._flat, strict=True)
        ]


def _groups(weights: list[torch.Tensor]) -> list[list[int]]:
    """Groups of indices of weights that are averaged as one flat tensor.

    The cost of updating many small weights is proportional to the number of
    tensors. Large weights are not grouped, because concatenating copies them.
    """
    small: dict[torch.dtype, list[int]] = {}
    large = []
    for i, weight in enumerate(weights):
        if weight.numel() <= SMALL and weight.device == weights[0].device:
            small.setdefault(_average_dtype(weight), []).append(i)
        else:
            large.append([i])
    return [*small.values(), *large]


def _flattened(tensors: list[torch.Tensor]) -> torch.Tensor:
    flat = [t.to(_average_dtype(t)).reshape(-1) for t in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _fastest_move(sample: torch.Tensor) -> Callable[..., Any]:
    # A CPU has no queue of operations that reading a value would wait for.
    if sample.is_cpu and math.isfinite(torch.dot(sample, sample)):
        return torch.Tensor.lerp_
    return _move


def _move(
    average: torch.Tensor, sample: torch.Tensor, coefficient: torch.Tensor
) -> None:
    """Compute `average += coefficient * (sample - average)` where finite."""
    difference = (sample - average).nan_to_num_(0.0, 0.0, 0.0)
    average.addcmul_(difference, coefficient)


def _move_and_replace(
    average: torch.Tensor, sample: torch.Tensor, coefficient: torch.Tensor
) -> None:
    """Like `_move`, and replace an average that is not finite."""
    is_finite = average.isfinite()
    _move(average, sample, coefficient * is_finite)
    average.copy_(torch.where(is_finite | ~sample.isfinite(), average, sample))


def _average_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
