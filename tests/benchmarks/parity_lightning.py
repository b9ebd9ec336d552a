"""Checks of Lightning's `EMAWeightAveraging`, in its `Trainer`."""

import contextlib
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as lightning
import numpy
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from parity_library import (
    DECAY,
    Library,
    change,
    count_updates,
    error,
    faint,
    walk,
)
from parity_torch import assign, weights

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Lightning(Library):
    """A callback of `Trainer.fit`."""

    starts = "at the first step"

    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        model = Follower(samples).to(getattr(torch, dtype))
        fit(model, EMAWeightAveraging(decay=decay))
        return weights(model.layer)

    def coefficient_left_by_updates_every_ten_steps(self):
        samples = numpy.zeros((1001, 3), "float32")
        samples[:2] = 1
        model = Follower(samples)
        fit(model, EMAWeightAveraging(decay=0.999, update_every_n_steps=10))
        return weights(model.layer).max()

    def raw_weights_after_evaluate(self):
        model = Follower(faint(), validated=True)
        fit(model, EMAWeightAveraging(decay=DECAY))
        return change(model.after_validation, faint()[-1])

    def raw_weights_after_predict(self):
        model, average = Follower(walk(20)), EMAWeightAveraging(decay=DECAY)
        trainer = fit(model, average)
        before = weights(model.layer)
        trainer.predict(model, loader(numpy.ones((4, 3), "float32")))
        return change(weights(model.layer), before)

    def raw_weights_after_fit(self):
        model = Follower(walk(20))
        fit(model, EMAWeightAveraging(decay=DECAY))
        return change(weights(model.layer), walk(20)[-1])

    def raw_weights_after_an_exception(self):
        model = Follower(walk(20), validated=True, fails=True)
        average = EMAWeightAveraging(decay=DECAY)
        with contextlib.suppress(InterruptedError):
            fit(model, average)
        model.fails, model.follows = False, False
        fit(model, average)
        return change(model.before_training, walk(20)[-1])

    def best_file(self, file_first):
        model = Follower(walk(20), validated=True)
        average = EMAWeightAveraging(decay=DECAY)
        with tempfile.TemporaryDirectory() as directory:
            save = ModelCheckpoint(directory, monitor="loss")
            fit(model, *([save, average] if file_first else [average, save]))
            saved = torch.load(save.best_model_path, weights_only=True)
            score = float(saved["state_dict"]["layer.weight"].sum())
            return change(score, float(save.best_model_score))

    def early_stop(self):
        model = Follower(walk(20), validated=True, stops=True)
        trainer = fit(model, EMAWeightAveraging(decay=DECAY), max_epochs=9)
        logged = float(trainer.callback_metrics["loss"])
        return change(float(model.layer.weight.sum()), logged)

    def updates_with_accumulation(self):
        model = Follower(walk(16), follows=False)
        average = EMAWeightAveraging(decay=DECAY)
        recorder = Recorder(average)
        fit(model, average, recorder, accumulate_grad_batches=4)
        return count_updates(recorder.seen[7:])

    def several_averages(self):
        samples, decays = walk(50), (0.9, 0.99)
        both = [EMAWeightAveraging(decay=0.9), Slow(decay=0.99)]
        fit(Follower(samples, validated=True), *both)
        return max(
            error(
                weights(a._average_model.module.layer), samples, d, self.starts
            )
            for a, d in zip(both, decays, strict=True)
        )

    def variance_of_batch_normalization(self, batches):
        model = Normalized(batches)
        fit(model, StochasticWeightAveraging(0.1, 1), max_epochs=4)
        return float(model.layer.running_var)

    def resume(self):
        whole, resumed = Follower(walk(40)), Follower(walk(20))
        fit(whole, EMAWeightAveraging(decay=DECAY))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "all.ckpt")
            average = EMAWeightAveraging(decay=DECAY)
            save = ModelCheckpoint(directory, filename="all")
            fit(resumed, average, save)
            resumed = Follower(walk(40)[20:])
            fit(
                resumed,
                EMAWeightAveraging(decay=DECAY),
                max_epochs=2,
                ckpt_path=path,
            )
        return change(weights(resumed.layer), weights(whole.layer))


class Follower(lightning.LightningModule):
    """A module whose weights take the values of samples, or are trained.

    Args:
        samples: Array, weights before training and after each step.
        follows: Boolean, whether the weights take the samples instead of being
            trained. Defaults to `True`.
        validated: Boolean, whether there is a validation. Defaults to `False`.
        fails: Boolean, whether the validation raises. Defaults to `False`.
        stops: Boolean, whether the training stops after the first validation.
            Defaults to `False`.
    """

    def __init__(
        self,
        samples,
        *,
        follows=True,
        validated=False,
        fails=False,
        stops=False,
    ):
        super().__init__()
        self.samples, self.follows = samples, follows
        self.validated, self.fails, self.stops = validated, fails, stops
        self.layer = torch.nn.Linear(samples.shape[1], 1, bias=False)
        assign(self.layer, samples[0])
        self.before_training = self.after_validation = None

    def training_step(self, batch, index):
        if self.before_training is None:
            self.before_training = weights(self.layer)
        if self.follows:
            assign(self.layer, batch.numpy())
        return (self.layer(torch.ones_like(self.layer.weight)) ** 2).sum()

    def validation_step(self, batch, index):
        if self.fails:
            raise InterruptedError
        self.log("loss", self.layer.weight.sum())

    def on_validation_end(self):
        self.after_validation = weights(self.layer)
        self.trainer.should_stop = self.stops

    def predict_step(self, batch, index):
        return self.layer(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0 if self.follows else 0.05)

    def train_dataloader(self):
        return loader(self.samples[1:])

    def val_dataloader(self):
        return loader(self.samples[:1] if self.validated else [])


class Normalized(lightning.LightningModule):
    """A BatchNorm, trained on given batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches, self.layer = batches, torch.nn.BatchNorm1d(1)

    def training_step(self, batch, index):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return loader(self.batches)


class Slow(EMAWeightAveraging):
    """A second class, because Lightning identifies callbacks by class."""


class Recorder(lightning.Callback):
    """Records the average after each batch."""

    def __init__(self, average):
        self.average, self.seen = average, []

    def on_train_batch_end(self, trainer, module, *batch):
        # The average has no public name during training.
        self.seen.append(weights(self.average._average_model.module.layer))


def loader(samples):
    """Return batches of one sample, always in the same order."""
    tensors = [torch.tensor(sample) for sample in samples]
    return torch.utils.data.DataLoader(tensors, batch_size=None)


def fit(module, *callbacks, max_epochs=1, ckpt_path=None, **options):
    """Train without output."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            callbacks=[*callbacks],
            default_root_dir=directory,
            enable_checkpointing=any(
                isinstance(c, ModelCheckpoint) for c in callbacks
            ),
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            max_epochs=max_epochs,
            num_sanity_val_steps=0,
            **options,
        )
        trainer.fit(module, ckpt_path=ckpt_path)
    return trainer
