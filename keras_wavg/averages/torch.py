"""Averages on torch: one fused kernel an update, on CPU and on GPU."""

from collections.abc import Sequence
from typing import Any, final

import keras
import torch

from keras_wavg.averages.arrivals import Arrivals
from keras_wavg.averages.counting import Counters, advance
from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import SMALL
from keras_wavg.backend import own_part
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule

# Elements that stay in the processor's cache through the passes of an update.
_BLOCK = 1 << 20


@final
class Averages(DeviceAverages):
    """Float32 averages of variables, on their devices.

    Args:
        variables: Keras variables of floating type.
        schedules: See `DeviceAverages`.
        start: Integer, the optimizer step from which samples count.
        device: See `DeviceAverages`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedules: tuple[Schedule, ...],
        start: int,
        device: str | None,
    ) -> None:
        super().__init__(schedules, device)
        self._variables = list(variables)
        self._weights = [own_part(v.value.detach()) for v in self._variables]
        self._groups = _groups(self._weights)
        self._flat = [
            [
                _flattened([self._weights[i] for i in group]).to(
                    device, copy=True
                )
                for group in self._groups
            ]
            for _ in self._schedules
        ]
        self._averages = [self._views(flat) for flat in self._flat]
        self._note_finite()
        place = self._flat[0][0].device
        self._counters = Counters(
            *(torch.tensor(n, device=place) for n in (start, 0))
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
        self._weights = [own_part(v.value.detach()) for v in self._variables]

    @torch.no_grad()
    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""
        del model
        self._fold_arrivals()
        for averages in self._averages:
            torch._foreach_copy_(averages, self._weights)
        self._note_finite()

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        self._fold_arrivals()
        for own, average in zip(self._averages[index], averages, strict=True):
            part = own_part(average)
            own.copy_(keras.ops.convert_to_tensor(part).detach())
        self._note_finite()

    def _load_counters(self, counters: Counters) -> None:
        for own, count in zip(self._counters, counters, strict=True):
            own.fill_(count)

    @torch.no_grad()
    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, where finite."""
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

    def read(self, index: int = 0) -> list[Any]:
        """An average in the order and shapes of the variables, as copies."""
        self._fold_arrivals()
        return [average.clone() for average in self._averages[index]]

    def _fold_arrivals(self) -> None:
        if self._arrivals is not None and self._arrivals.expected:
            self._fold(*self._arrivals.receive())

    @torch.no_grad()
    def _fold(self, now: Any, weights: list[torch.Tensor]) -> None:
        # Keras' operations move what they get to the device of its choice.
        with keras.device(str(self._counters.last.device)):
            self._counters, coefficients = advance(
                self._counters, now, self._schedules
            )
        for group, is_finite, *averages in zip(
            self._groups, self._are_finite, *self._flat, strict=True
        ):
            sample = _flattened([weights[i] for i in group])
            move = _move if is_finite else _move_where_finite
            blocks = zip(
                sample.split(_BLOCK),
                *(average.split(_BLOCK) for average in averages),
                strict=True,
            )
            for sampled, *parts in blocks:
                for part, coefficient in zip(parts, coefficients, strict=True):
                    move(part, sampled, coefficient.to(part.dtype))

    def _views(self, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        """An average in the order and shapes of the variables."""
        views: dict[int, torch.Tensor] = {}
        for tensor, group in zip(flat, self._groups, strict=True):
            sizes = [self._weights[i].numel() for i in group]
            for i, part in zip(group, tensor.split(sizes), strict=True):
                views[i] = part.view(self._weights[i].shape)
        return [views[i] for i in range(len(self._weights))]

    def _note_finite(self) -> None:
        # A finite average stays finite, so it need not be looked at again.
        self._are_finite = [
            all(bool(average.isfinite().all()) for average in averages)
            for averages in zip(*self._flat, strict=True)
        ]


def _groups(weights: list[torch.Tensor]) -> list[list[int]]:
    """Indices of the weights that are averaged as one flat tensor.

    What an update of many small weights costs is their number. Large ones are
    left alone, because to put them together is to copy them.
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


def _move(
    average: torch.Tensor, sample: torch.Tensor, coefficient: torch.Tensor
) -> None:
    """`average += coefficient * (sample - average)`, where that is finite."""
    away = (sample - average).nan_to_num_(0.0, 0.0, 0.0)
    average.addcmul_(away, coefficient)


def _move_where_finite(
    average: torch.Tensor, sample: torch.Tensor, coefficient: torch.Tensor
) -> None:
    """The same, where an average that is not finite becomes the sample."""
    known = average.isfinite()
    _move(average, sample, coefficient * known)
    average.copy_(torch.where(known | ~sample.isfinite(), average, sample))


def _average_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
