"""Power-function averages of the weights, several at once."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy

from keras_wavg import arguments
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.backend import require_readable
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.callbacks.weight_averaging import WeightAveraging
from keras_wavg.profile import Profile, exponent_from_sigma_rel
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import Power


class PowerEMA(WeightAveraging):
    """Power-function averages, whose width can be chosen after training.

    The coefficient of step s in the average after t steps is proportional to
    `s**gamma`. So the width of the average is a constant fraction of the
    training, and does not need to be tuned to its length. An update after `k`
    more steps is

        average += (1 - (1 - k / t) ** (gamma + 1)) * (weights - average)

    which is exact for any `k`. `sigma_rel` is the standard deviation of the age
    of the samples, divided by t.

    From snapshots of two such averages, `keras_wavg.synthesize` computes the
    average of any other width after training.

    Args:
        sigma_rel: Float or sequence of floats in [1e-9, 1 / sqrt(12)], the
            widths. The first is the average that is in the model for
            validation, and the default of `get_weights` and `save_weights`.
            Defaults to `(0.05, 0.1)`.
        every_steps: Positive integer, the number of optimizer steps between
            updates. Defaults to `1`.
        snapshot_dir: String or `pathlib.Path` of the directory for snapshots,
            which is created if it does not exist. Each average is saved as
            `sigma_<width>-<epoch>.weights.h5`, which contains its `Profile`.
            Defaults to `None`, no snapshots.
        snapshot_every_epochs: Positive integer, the number of epochs between
            snapshots. Defaults to `1`.
        device: `None` or `"cpu"`. See `EMA`. Defaults to `None`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"power_ema"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> power = keras_wavg.PowerEMA((0.05, 0.1))
    >>> history = model.fit(x, y, epochs=5, verbose=0, callbacks=[power])
    >>> with power.applied(0.1):
    ...     loss = model.evaluate(x, y, verbose=0)

    Raises:
        ValueError: If an argument is out of its range, if two widths are the
            same, or if `include` matches no weight.

    References:
        [Karras et al., 2024](https://arxiv.org/abs/2312.02696), section 3
    """

    def __init__(
        self,
        sigma_rel: float | Sequence[float] = (0.05, 0.1),
        *,
        every_steps: int = 1,
        snapshot_dir: str | os.PathLike[str] | None = None,
        snapshot_every_epochs: int = 1,
        device: str | None = None,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.sigma_rel = _widths(sigma_rel)
        self.every_steps = arguments.integer(
            "every_steps", every_steps, at_least=1
        )
        self.snapshot_dir = None if snapshot_dir is None else Path(snapshot_dir)
        self.snapshot_every_epochs = arguments.integer(
            "snapshot_every_epochs", snapshot_every_epochs, at_least=1
        )
        self.device = arguments.device(device)
        exponents = map(exponent_from_sigma_rel, self.sigma_rel)
        self._method = Scheduled(
            tuple(map(Power, exponents)), device=self.device
        )
        super().__init__(
            self._method,
            EverySteps(self.every_steps),
            **options,
        )

    def profile(self, sigma_rel: float | None = None) -> Profile:
        """Return the coefficient of each past step in an average.

        Args:
            sigma_rel: Float, one of the widths. Defaults to `None`, the first.

        Returns:
            A `keras_wavg.Profile`.

        Raises:
            ValueError: If there is no average yet, or none of this width.
        """
        index = self._index(sigma_rel)
        self._required_average()
        times, now = self._model_average.samples()
        return self._method.profile(times, now, index)

    def get_weights(
        self, sigma_rel: float | None = None
    ) -> list[numpy.ndarray]:
        """Return the weights of an average. See `EMA.get_weights`.

        Args:
            sigma_rel: Float, one of the widths. Defaults to `None`, the first.

        Returns:
            A list of NumPy arrays in the order of `model.get_weights()`.

        Raises:
            ValueError: If there is no average yet, or none of this width.
        """
        index = self._index(sigma_rel)
        if not index:
            return super().get_weights()
        averaged = self._required_average()
        averages = averaged.averages.read(index)
        if self._statistics is not None:
            measured = self._statistics.variables(self.model, self.include)
            with self.applied(sigma_rel):
                averages = averaged.with_values_of(measured, averages)
        return averaged.get_weights(averages)

    def save_weights(
        self,
        filepath: str | os.PathLike[str],
        sigma_rel: float | None = None,
    ) -> None:
        """Save only the weights of an average. See `EMA.save_weights`.

        Args:
            filepath: String or `pathlib.Path` that ends in `.weights.h5`.
            sigma_rel: Float, one of the widths. Defaults to `None`, the first.

        Raises:
            ValueError: If the file name has another ending, if there is no
                average yet, or none of this width.
            FileNotFoundError: If the directory does not exist.
        """
        self._save(
            filepath,
            functools.partial(self.profile, sigma_rel),
            functools.partial(self.applied, sigma_rel),
        )

    @contextlib.contextmanager
    def applied(self, sigma_rel: float | None = None) -> Iterator[None]:
        """Context in which the model holds an average.

        On exit the model holds what it held on entry, bit for bit. With
        `batch_norm_data`, statistics of all but the first average are measured
        each time.

        Args:
            sigma_rel: Float, one of the widths. Defaults to `None`, the first.

        Yields:
            `None`.

        Raises:
            ValueError: If there is no model, no average of this width, or, for
                any but the first width, no average yet.
        """
        index = self._index(sigma_rel)
        if not index:
            with super().applied():
                yield
            return
        averaged = self._required_average()
        with averaged.applied(averaged.averages.read(index)):
            self._measure()
            yield

    def _contexts(self) -> dict[str, Callable[[], Any]]:
        if len(self.sigma_rel) == 1:
            return super()._contexts()
        return {
            f"{self.name}_{width}": functools.partial(self.applied, width)
            for width in self.sigma_rel
        }

    def on_train_begin(self, logs: Any = None) -> None:
        """Start, and check that snapshots can be written."""
        super().on_train_begin(logs)
        if self.snapshot_dir is not None:
            require_readable(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save the snapshots that are due."""
        super().on_epoch_end(epoch, logs)
        if self.snapshot_dir is None or self._average() is None:
            return
        epochs = self._model_average.epochs
        if epochs % self.snapshot_every_epochs == 0:
            self.snapshot_dir.mkdir(parents=True, exist_ok=True)
            for sigma_rel in self.sigma_rel:
                name = f"sigma_{sigma_rel}-{epochs:05}.weights.h5"
                self.save_weights(self.snapshot_dir / name, sigma_rel)

    def _index(self, sigma_rel: float | None) -> int:
        chosen = self.sigma_rel[0] if sigma_rel is None else sigma_rel
        if chosen not in self.sigma_rel:
            raise ValueError(
                f"`sigma_rel` must be one of {list(self.sigma_rel)}. Received: "
                f"sigma_rel={sigma_rel!r}. `keras_wavg.synthesize` computes "
                "averages of other widths from snapshots."
            )
        return self.sigma_rel.index(chosen)


def _widths(sigma_rel: float | Sequence[float]) -> tuple[float, ...]:
    many: Any = [sigma_rel] if arguments.is_number(sigma_rel) else sigma_rel
    many = list(many) if isinstance(many, Iterable) else []
    if not many or len(set(many)) < len(many):
        raise ValueError(
            "`sigma_rel` must be one or several different widths. Received: "
            f"sigma_rel={sigma_rel!r}"
        )
    for width in many:
        exponent_from_sigma_rel(width)  # raises if out of range
    return tuple(map(float, many))
