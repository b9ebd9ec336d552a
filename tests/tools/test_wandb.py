"""What Weights & Biases logs and saves when an average is in the callbacks."""

import json
import struct

import pytest
import wandb
from logged import (
    EPOCHS,
    STEPS,
    assert_has_both,
    close,
    expected,
    in_any_order,
    train_with,
)
from wandb.integration.keras import WandbMetricsLogger, WandbModelCheckpoint
from wandb.proto import wandb_internal_pb2

BLOCK = 2**15  # bytes of a block of the file of a run


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """A directory for a run that is not uploaded."""
    monkeypatch.chdir(tmp_path)
    wandb.init(mode="offline", dir=tmp_path)
    yield tmp_path
    wandb.teardown()


def history(directory):
    """The metrics that are written for each call of `wandb.log`."""
    # Unlike `finish`, it returns after the file is written.
    wandb.teardown()
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    for record in records(file.read_bytes()):
        if items := record.history.item:
            yield {
                item.nested_key[0]: json.loads(item.value_json)
                for item in items
            }


def records(written):
    """The records of a run: a log in the format of LevelDB."""
    position, record = 7, b""
    while BLOCK - position % BLOCK >= 7 and position < len(written):
        header = written[position + 4 : position + 7]
        length, kind = struct.unpack("<HB", header)
        position += 7 + length
        record += written[position - length : position]
        if kind in {1, 4}:  # the only part, or the last one
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@in_any_order
def test_metrics_logger_logs_the_loss_of_training_and_that_of_the_average(
    order, directory
):
    train_with(WandbMetricsLogger(), order)
    rows = [*history(directory)]
    assert [row["epoch/epoch"] for row in rows] == [*range(EPOCHS)]
    assert [row["epoch/loss"] for row in rows] == expected().loss
    val_losses = [row["epoch/val_loss"] for row in rows]
    assert val_losses == close(expected().val_loss)


@in_any_order
def test_metrics_logger_logs_the_loss_of_training_for_each_batch(
    order, directory
):
    train_with(WandbMetricsLogger("batch"), order)
    losses = [
        row["batch/loss"] for row in history(directory) if "batch/loss" in row
    ]
    # Keras logs the mean of the epoch so far.
    assert losses[STEPS - 1 :: STEPS] == expected().loss


@in_any_order
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_model_checkpoint_saves_the_average_and_the_raw_weights(
    suffix, order, directory
):
    checkpoint = WandbModelCheckpoint(
        directory / f"{{epoch}}{suffix}",
        save_weights_only=suffix == ".weights.h5",
    )
    train_with(checkpoint, order)
    for epoch in range(EPOCHS):
        assert_has_both(directory / f"{epoch + 1}{suffix}", epoch)
