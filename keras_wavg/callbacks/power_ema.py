"""Power-function averages of the weights, several at once."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.scheduled import Scheduled
from keras_wavg.backend import require_readable
from keras_wavg.callbacks.averaging import WeightAveraging
from keras_wavg.plan import Plan
from keras_wavg.profile import Profile, exponent_from_sigma_rel
from keras_wavg.sampling import EverySteps
from keras_wavg.schedules import Power


class PowerEMA(WeightAveraging):
    """Power-function averages of the weights, for a horizon chosen afterwards.

    The share of step s in the average after t steps is in proportion to
    `s**gamma`. So its width is always the same share of the training, and there
    is nothing to tune to its length. After `k` more steps,

        average += (1 - (1 - k / t) ** (gamma + 1)) * (weights - average)

    which is exact for any `k`. `sigma_rel` is the standard deviation of the
    age, by t.

    Of one training with two such averages and snapshots of them,
    `keras_wavg.synthesize` makes the average of any other width.

    Args:
        sigma_rel: Float or sequence of floats in [1e-9, 1 / sqrt(12)].
            The first is the average that is in the model for validation, and of
            which `get_weights` and `save_weights` speak by default. Defaults
            to `(0.05, 0.1)`.
        every: See `EMA`. Defaults to `1`.
        snapshots: Folder, made if it is missing, for a `.weights.h5` of each
            average at the end of an epoch, named
            `sigma_<width>-<epoch>.weights.h5`. It carries its `Profile`.
            Defaults to `None`.
        snapshot_every: Positive integer, epochs from one snapshot to the next.
            Defaults to `1`.
        swap: See `EMA`. Defaults to `True`.
        include: See `EMA`. Defaults to `None`.
        name: See `EMA`. Defaults to `"power_ema"`.
        device: See `EMA`. Defaults to `None`.

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
        every: int = 1,
        snapshots: str | os.PathLike[str] | None = None,
        snapshot_every: int = 1,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
        device: str | None = None,
    ) -> None:
        self.sigma_rel = _widths(sigma_rel)
        self.every = arguments.integer("every", every, at_least=1)
        self.snapshots = None if snapshots is None else Path(snapshots)
        self.snapshot_every = arguments.integer(
            "snapshot_every", snapshot_every, at_least=1
        )
        exponents = map(exponent_from_sigma_rel, self.sigma_rel)
        self._method = Scheduled(
            tuple(map(Power, exponents)), device=arguments.device(device)
        )
        plan = Plan(
            name=arguments.name(name, "power_ema"),
            method=self._method,
            sampling=EverySteps(self.every),
            include=arguments.include(include),
        )
        super().__init__(plan, swap=swap)

    def profile(self, sigma_rel: float | None = None) -> Profile:
        """What an average is made of.

        Args:
            sigma_rel: Float, which of the averages. Defaults to the first.

        Returns:
            A `keras_wavg.Profile`.

        Raises:
            ValueError: If there is no average yet, or none of that width.
        """
        index = self._index(sigma_rel)
        self._required_average()
        times, now = self._running.samples()
        return self._method.profile(times, now, index)

    def get_weights(
        self, sigma_rel: float | None = None
    ) -> list[numpy.ndarray]:
        """The weights of an average, see `EMA.get_weights`.

        Args:
            sigma_rel: Float, which of the averages. Defaults to the first.

        Returns:
            A list of NumPy arrays in the order of `model.get_weights()`.

        Raises:
            ValueError: If there is no average yet, or none of that width.
        """
        index = self._index(sigma_rel)
        if not index:
            return super().get_weights()
        shadow = self._required_average()
        return shadow.get_weights(shadow.averages.read(index))

    def save_weights(
        self,
        filepath: str | os.PathLike[str],
        sigma_rel: float | None = None,
    ) -> None:
        """Save the weights of an average alone, see `EMA.save_weights`.

        Args:
            filepath: String or `pathlib.Path` that ends in `.weights.h5`.
            sigma_rel: Float, which of the averages. Defaults to the first.

        Raises:
            ValueError: If the file name ends otherwise, if there is no average
                yet, or none of that width.
            FileNotFoundError: If the folder does not exist.
        """
        self._save(
            filepath,
            functools.partial(self.profile, sigma_rel),
            functools.partial(self.applied, sigma_rel),
        )

    @contextlib.contextmanager
    def applied(self, sigma_rel: float | None = None) -> Iterator[None]:
        """Context in which the model holds an average.

        Afterwards the model holds what it held before, bit for bit.

        Args:
            sigma_rel: Float, which of the averages. Defaults to the first.

        Yields:
            `None`.

        Raises:
            ValueError: If there is no model, no average of that width, or, for
                any but the first width, no average yet.
        """
        index = self._index(sigma_rel)
        if not index:
            with super().applied():
                yield
            return
        shadow = self._required_average()
        with shadow.applied(shadow.averages.read(index)):
            yield

    def contexts(self) -> dict[str, Callable[[], Any]]:
        """The averages, by the name and, if there are several, the width.

        Returns:
            See `EMA.contexts`.
        """
        if len(self.sigma_rel) == 1:
            return super().contexts()
        return {
            f"{self.name}_{width}": functools.partial(self.applied, width)
            for width in self.sigma_rel
        }

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin, unless snapshots could not be written."""
        super().on_train_begin(logs)
        if self.snapshots is not None:
            require_readable(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the snapshots that are due."""
        super().on_epoch_end(epoch, logs)
        if self.snapshots is None or self._average() is None:
            return
        if self._running.epochs % self.snapshot_every == 0:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            for sigma_rel in self.sigma_rel:
                self._write_snapshot(self.snapshots, sigma_rel)

    def _write_snapshot(self, folder: Path, sigma_rel: float) -> None:
        name = f"sigma_{sigma_rel}-{self._running.epochs:05}.weights.h5"
        self.save_weights(folder / name, sigma_rel)

    def _index(self, sigma_rel: float | None) -> int:
        chosen = self.sigma_rel[0] if sigma_rel is None else sigma_rel
        if chosen not in self.sigma_rel:
            raise ValueError(
                f"`sigma_rel` must be one of {list(self.sigma_rel)}. Received: "
                f"sigma_rel={sigma_rel!r}. `keras_wavg.synthesize` makes "
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
        exponent_from_sigma_rel(width)  # refuses what is none
    return tuple(map(float, many))
