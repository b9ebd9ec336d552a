"""SWA-Gaussian: a Gaussian distribution of weights around their average."""

import contextlib
from collections.abc import Iterator
from typing import Any, Unpack

import numpy

from keras_wavg import arguments
from keras_wavg.averages.gaussian import GaussianOfSamples
from keras_wavg.backend import span_processes, sync_weights
from keras_wavg.callbacks.epoch_averaging import EpochAveraging
from keras_wavg.callbacks.manual_averaging import AveragingOptions
from keras_wavg.ensemble import mean_prediction


class SWAG(EpochAveraging):
    """SWA-Gaussian: the mean of `SWA`, and a covariance around it.

    From the samples at the ends of epochs or cycles, it computes their mean,
    the variance of each weight, and the `rank` latest deviations `D` of a
    sample from the mean of the samples up to it. A sample of the posterior is

        mean + sqrt(scale) * (sqrt(variance) * z1 + D @ z2 / sqrt(rank - 1))

    with standard normal `z1` (one for each weight) and `z2` (one for each
    deviation). With `scale=0.5` it is that of the paper. Moving statistics of
    `BatchNormalization` are not sampled: they are those of the mean, or
    measured for each sample with `batch_norm_data`.

    As an average it works like `SWA`: its mean is in the model for validation
    and after `fit`.

    Memory: `rank + 2` copies of the weights in float32, in host memory; the
    device stores nothing, so there is no `device` argument. Files that Keras
    saves grow by the same amount, and training resumes exactly.

    Args:
        start_epoch: Non-negative integer, the first epoch that counts, from
            0. Defaults to `0`.
        every_epochs: Positive integer, the number of epochs between samples.
            Defaults to `1`.
        every_steps: Positive integer, the number of optimizer steps between
            samples, which replaces the epochs. Defaults to `None`.
        rank: Integer >= 2, the number of deviations that are kept. Defaults to
            `20`.
        **options: `include`, `swap`, `name`, `batch_norm_data` and
            `batch_norm_steps`, see `EMA`. `name` defaults to `"swag"`.

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
        every_epochs: int = 1,
        every_steps: int | None = None,
        rank: int = 20,
        **options: Unpack[AveragingOptions],
    ) -> None:
        self.rank = arguments.integer("rank", rank, at_least=2)
        super().__init__(
            GaussianOfSamples(self.rank),
            start_epoch=start_epoch,
            every_epochs=every_epochs,
            every_steps=every_steps,
            **options,
        )

    @contextlib.contextmanager
    def sample(self, scale: float = 0.5, *, seed: Any = None) -> Iterator[None]:
        """Context in which the model holds a sample of the posterior.

        On exit the model holds what it held on entry, bit for bit. Do not train
        the model in the context.

        Args:
            scale: Non-negative float, the factor of the covariance. Defaults to
                `0.5`.
            seed: Non-negative integer, or another seed that
                `numpy.random.default_rng` accepts. A seed gives the same sample
                each time, on every backend. Defaults to `None`, a new sample
                each time.

        Example:

        ```python
        with swag.sample(seed=1):
            model.evaluate(x_test, y_test)
        ```

        Yields:
            `None`.

        Raises:
            ValueError: If there are fewer samples than `rank`, if `scale` is
                negative, or if weights are sharded over several processes and
                there is no `seed`.
        """
        averaged = self._required_average()
        self._require_seed(seed)
        self._require_samples(averaged.steps)
        factor = arguments.number("scale", scale, at_least=0)
        with averaged.applied(averaged.averages.sample(factor, seed)):
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
        """Return the mean prediction of models with sampled weights.

        The outputs of the model are averaged. For a mean of probabilities, end
        the model with a softmax.

        Args:
            x: Inputs that `model.predict` accepts and that can be iterated
                repeatedly.
            samples: Positive integer, the number of models. Defaults to `30`.
            scale: Non-negative float, see `sample`. Defaults to `0.5`.
            seed: Non-negative integer. Defaults to `None`, new samples each
                time.
            verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
                `"auto"`.
            **options: Other arguments of `model.predict`.

        Returns:
            NumPy array(s), as `model.predict` returns.

        Raises:
            ValueError: See `sample`, if `samples` is not positive, or if `x` is
                an iterator.
        """
        count = arguments.integer("samples", samples, at_least=1)
        _ = self._model_average
        self._require_seed(seed)
        seeds = numpy.random.SeedSequence(seed).spawn(count)
        members = [self.sample(scale, seed=seed) for seed in seeds]
        return mean_prediction(
            self.model, x, members, verbose=verbose, **options
        )

    def _require_seed(self, seed: Any) -> None:
        sync_weights(self.model)
        if seed is None and span_processes(self.model.weights):
            raise ValueError(
                "If weights are sharded over several processes, all processes "
                "must draw the same sample. Received: seed=None. Pass the same "
                "`seed` in each process."
            )

    def _require_samples(self, samples: int) -> None:
        if samples < self.rank:
            raise ValueError(
                "`rank` must not be greater than the number of samples. "
                f"Received: rank={self.rank}, after {samples} samples of the "
                "weights. Train longer, sample more often, or lower `rank`."
            )
