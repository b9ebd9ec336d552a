"""Checks of this package, on the running backend."""

import itertools
import tempfile
from pathlib import Path

import keras
import models
import numpy
import reference
from models import clock, compiled, data
from parity_fit import (
    after_an_exception,
    change_by,
    fit,
    flat,
    score_after_early_stop,
    score_of_best_file,
    small,
    updates_in_fit,
    vector,
)
from parity_library import (
    CLOCK_STEPS,
    DECAY,
    Library,
    age_and_width,
    change,
    faint,
    ticks,
    walk,
)

from keras_wavg import (
    EMA,
    SWA,
    AverageEvaluator,
    PowerEMA,
    average_checkpoints,
    synthesize,
    update_bn,
)


class KerasWavg(Library):
    """`keras_wavg`."""

    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        average = EMA(decay, bias_correction=corrected)
        return followed(average, samples, dtype)

    def error_of_fifty_steps(self):
        samples = walk(50)
        expected = reference.ema([[s] for s in samples[1:]], DECAY)
        received = self.follow(samples, corrected=True)
        corrected = reference.relative_error([received], expected)
        return max(super().error_of_fifty_steps(), corrected)

    def coefficient_left_by_updates_every_ten_steps(self):
        samples = numpy.zeros((1001, 3), "float32")
        samples[0] = 1
        average = EMA(0.999, every_steps=10, bias_correction=False)
        return followed(average, samples).max()

    def power_function_every_ten_steps(self):
        return age_and_width(followed(PowerEMA(0.1, every_steps=10), ticks()))

    def raw_weights_after_evaluate(self):
        model, average = trained_on(faint())
        x = numpy.ones((4, 3))
        return change_by(
            model,
            lambda: model.evaluate(x, x[:, :1], verbose=0, callbacks=[average]),
        )

    def raw_weights_after_predict(self):
        model, average = trained_on(walk(50))
        x = numpy.ones((4, 3))
        return change_by(
            model, lambda: model.predict(x, verbose=0, callbacks=[average])
        )

    def raw_weights_after_fit(self):
        model, average, samples = small(), EMA(DECAY), models.Samples()
        fit(model, samples, average)
        average.restore()
        return change(flat(model.get_weights()), flat(samples.weights[-1]))

    def raw_weights_after_an_exception(self):
        return after_an_exception(small(), EMA(DECAY))

    def best_file(self, file_first):
        model, average = small(), EMA(DECAY)
        return score_of_best_file(model, average, file_first=file_first)

    def early_stop(self):
        return score_after_early_stop(small(), EMA(DECAY))

    def updates_with_accumulation(self):
        optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
        model, average = compiled(models.dense(), optimizer), EMA(DECAY)
        return updates_in_fit(model, lambda _: average.get_weights(), average)

    def variance_of_batch_normalization(self, batches):
        normalization = keras.layers.BatchNormalization()
        model = keras.Sequential([keras.Input((1,)), normalization])
        size = len(batches[0])
        x = numpy.concatenate(batches)
        update_bn(model, x, batch_size=size, verbose=0)
        return float(normalization.moving_variance.value[0])

    def resume(self):
        whole, average = small(), EMA(DECAY)
        resumed, again = small(), EMA(DECAY)
        fit(whole, average)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "all.weights.h5")
            whole.save_weights(path)
            resumed.optimizer.build(resumed.trainable_variables)
            again.set_model(resumed)
            resumed.load_weights(path)
        fit(whole, average)
        fit(resumed, again)
        return change(flat(again.get_weights()), flat(average.get_weights()))

    def several_averages(self):
        fast, slow = EMA(DECAY), EMA(0.99, swap=False, name="slow")
        swa, samples = SWA(swap=False), models.Samples()
        averages = [fast, slow, swa]
        validation = data(1, seed=1)
        fit(small(), samples, *averages, validation_data=validation)
        expected = [
            reference.ema(samples.weights, 0.9),
            reference.ema(samples.weights, 0.99),
            reference.mean(samples.weights[5::6]),
        ]
        return max(
            reference.relative_error(average.get_weights(), weights)
            for average, weights in zip(averages, expected, strict=True)
        )

    def scores_in_one_history(self):
        x, y = data(4, seed=1)
        model, average = small(), EMA(DECAY)
        evaluator = AverageEvaluator(x, y, averages=[average])
        logs = fit(model, average, evaluator).history
        averaged = model.evaluate(x, y, verbose=0)
        average.restore()
        raw = model.evaluate(x, y, verbose=0)
        return max(
            change(logs["ema_val_loss"][-1], averaged),
            change(logs["raw_val_loss"][-1], raw),
        )

    def error_of_reported_mean_age(self):
        average = EMA(0.99, every_steps=10)
        actual, _ = age_and_width(followed(average, ticks()))
        return average.profile().mean_age / CLOCK_STEPS - actual

    def synthesis(self, every):
        """Make the average of width 0.15 from snapshots of 0.05 and 0.1."""
        with tempfile.TemporaryDirectory() as directory:
            snapshots, output = (
                Path(directory, "run"),
                Path(directory, "a.weights.h5"),
            )
            power = PowerEMA(
                (0.05, 0.1), every_steps=every, snapshot_dir=snapshots
            )
            model, epochs = clock(CLOCK_STEPS), 20
            x = numpy.zeros((CLOCK_STEPS // epochs, 1), "float32")
            model.fit(
                x, batch_size=1, epochs=epochs, verbose=0, callbacks=[power]
            )
            synthesize(sorted(snapshots.iterdir()), output, sigma_rel=0.15)
            made = clock(CLOCK_STEPS)
            made.load_weights(output)
        return age_and_width(made.get_weights())

    def averaged_files(self):
        """Count elements that differ from the mean in float64, rounded once."""
        model = models.dense()
        samples = [
            [w * scale + scale for w in model.get_weights()]
            for scale in (1e-4, 1, 1e4, -1e4, 1 / 3)
        ]
        expected = flat(reference.mean(samples)).astype("float32")
        return max(
            numpy.sum(files_averaged(model, order) != expected)
            for order in (samples, samples[::-1])
        )


def followed(average, samples, dtype="float32"):
    """Return the average of a model whose weights take a sample per step."""
    model = vector(len(samples[0]), dtype)
    model.set_weights([samples[0][:, None]])
    average.set_model(model)
    for before, sample in itertools.pairwise(samples):
        if not numpy.array_equal(before, sample):
            model.set_weights([sample[:, None]])
        average.update()
    return average.get_weights()[0].astype("float64")[:, 0]


def trained_on(samples):
    """Return a model with the last sample as weights, and the average."""
    average = EMA(DECAY, bias_correction=False)
    followed(average, samples)
    average.model.compile("sgd", "mse")
    return average.model, average


def files_averaged(model, samples):
    """Return the average of files, one for each sample, as an array."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [
            Path(directory, f"{i}.weights.h5") for i in range(len(samples))
        ]
        for path, sample in zip(paths, samples, strict=True):
            model.set_weights(sample)
            model.save_weights(path)
        output = Path(directory, "mean.weights.h5")
        average_checkpoints(paths, output)
        model.load_weights(output)
    return flat(model.get_weights())
