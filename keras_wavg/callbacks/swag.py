"""SWA-Gaussian: a distribution of weights around their average."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.averages.gaussian import GaussianOfSamples
from keras_wavg.backend import attach_weights, span_processes
from keras_wavg.callbacks.epochs import EpochAveraging
from keras_wavg.ensemble import mean_prediction


class SWAG(EpochAveraging):
    """SWA-Gaussian: the mean of `SWA`, and a covariance around it.

    From the samples at the ends of epochs, or of cycles, it keeps their mean,
    the variance of each weight, and the `rank` latest deviations `D` of a
    sample from the mean of the samples up to it. A sample of the posterior is

        mean + sqrt(scale) * (sqrt(variance) * z1 + D @ z2 / sqrt(rank - 1))

    with standard normal `z1` (one for each weight) and `z2` (one for each
    deviation); with `scale=0.5` it is the paper's. Moving statistics of
    `BatchNormalization` have no noise: they are the mean's, or measured for
    each sample with `bn_data`.

    As an average it is `SWA`: its mean is in the model for validation and after
    `fit`.

    Memory: `rank + 2` copies of the weights in float32, in host memory. A file
    that Keras writes of the model grows by as much, and training goes on from
    it exactly.

    Args:
        start_epoch: See `SWA`. Defaults to `0`.
        every: See `SWA`. Defaults to `1`.
        every_steps: See `SWA`. Defaults to `None`.
        rank: Integer of at least 2, the deviations that are kept. Defaults to
            `20`.
        bn_data: See `SWA`. Defaults to `None`.
        swap: See `SWA`. Defaults to `True`.
        include: See `SWA`. Defaults to `None`.
        name: See `SWA`. Defaults to `"swag"`.

    Example:

    >>> import keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = numpy.ones((64, 2)), numpy.ones((64, 1))
    >>> swag = keras_wavg.SWAG(rank=2)
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[swag])
    >>> with swag.sample(seed=0):
    ...     sampled = model.get_weights()
    >>> swag.predict(x, samples=5, verbose=0).shape
    (64, 1)

    Raises:
        ValueError: See `SWA`.

    References:
        [Maddox et al., 2019](https://arxiv.org/abs/1902.02476), algorithm 1
    """

    def __init__(
        self,
        start_epoch: int = 0,
        *,
        every: int = 1,
        every_steps: int | None = None,
        rank: int = 20,
        bn_data: Any = None,
        swap: bool = True,
        include: Include = None,
        name: str | None = None,
    ) -> None:
        self.rank = arguments.integer("rank", rank, at_least=2)
        super().__init__(
            GaussianOfSamples(self.rank),
            start_epoch=start_epoch,
            every=every,
            every_steps=every_steps,
            bn_data=bn_data,
            swap=swap,
            include=include,
            name=name,
        )

    @contextlib.contextmanager
    def sample(self, scale: float = 0.5, *, seed: Any = None) -> Iterator[None]:
        """Context in which the model holds a sample of the posterior.

        Afterwards the model holds what it held before, bit for bit. Do not
        train in it.

        Args:
            scale: Float, at least 0: what the covariance is multiplied by.
                Defaults to `0.5`.
            seed: Integer, or what else `numpy.random.default_rng` takes: the
                same sample each time, on every backend. Defaults to `None`,
                another one each time.

        Example:

        ```python
        with swag.sample(seed=1):
            model.evaluate(x_test, y_test)
        ```

        Yields:
            `None`.

        Raises:
            ValueError: If there are fewer samples than `rank`, or if `scale` is
                negative. If weights are of several processes together, and
                there is no `seed`.
        """
        shadow = self._required_average()
        self._require_seed(seed)
        self._require_samples(shadow.steps)
        factor = arguments.number("scale", scale, at_least=0)
        with shadow.applied(shadow.averages.sample(factor, seed)):
            if self.bn_data is not None:
                self._measure()
            yield

    def predict(
        self,
        x: Any,
        *,
        samples: int = 30,
        scale: float = 0.5,
        seed: int | None = None,
        verbose: Any = "auto",
        **options: Any,
    ) -> Any:
        """The mean of what models of sampled weights predict.

        What the model outputs is averaged: let it end in a softmax for a mean
        of probabilities.

        Args:
            x: What `model.predict` takes, and that can be gone through again
                and again.
            samples: Positive integer, the number of models. Defaults to `30`.
            scale: See `sample`. Defaults to `0.5`.
            seed: Integer, or `None` for other samples each time. Defaults to
                `None`.
            verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
                `"auto"`.
            **options: What else `model.predict` takes.

        Returns:
            NumPy array(s), as `model.predict` returns.

        Raises:
            ValueError: See `sample`, if `samples` is not positive, or if `x` is
                an iterator.
        """
        count = arguments.integer("samples", samples, at_least=1)
        self._require_model()
        self._require_seed(seed)
        seeds = numpy.random.SeedSequence(seed).spawn(count)
        members = [self.sample(scale, seed=seed) for seed in seeds]
        return mean_prediction(
            self.model, x, members, verbose=verbose, **options
        )

    def _require_seed(self, seed: Any) -> None:
        attach_weights(self.model)
        if seed is None and span_processes(self.model.weights):
            raise ValueError(
                "Where weights are of several processes together, all have to "
                "draw the same sample. Received: seed=None. Pass the same "
                "`seed` in each process."
            )

    def _require_samples(self, samples: int) -> None:
        if samples < self.rank:
            raise ValueError(
                "`rank` must not be greater than the number of samples. "
                f"Received: rank={self.rank}, with {samples} samples of the "
                "weights so far. Train longer, sample more often, or lower "
                "`rank`."
            )
