"""What other tools log and save when an average is in the callbacks."""

import collections
import csv
import http.server
import json
import threading

import keras
import keras_tuner
import numpy
import pytest
from keras.wrappers import SKLearnRegressor
from logged import (
    DECAY,
    EPOCHS,
    OPTIONS,
    STEPS,
    assert_cross_validates_the_average,
    assert_has_both,
    close,
    expected,
    in_any_order,
    network,
    score,
    train_with,
    trained_model,
)
from models import compiled, data, dense
from sklearn.base import clone

from keras_wavg import EMA


@in_any_order
def test_csv_logger_writes_the_loss_of_training_and_that_of_the_average(
    order, tmp_path
):
    train_with(keras.callbacks.CSVLogger(tmp_path / "log.csv"), order)
    rows = [*csv.DictReader((tmp_path / "log.csv").open())]
    losses = [float(row["loss"]) for row in rows]
    val_losses = [float(row["val_loss"]) for row in rows]
    assert losses == expected().loss
    assert val_losses == close(expected().val_loss)


@pytest.fixture
def server():
    """A local server, and the list of what is posted to it."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            received.append(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            """Print nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


@in_any_order
def test_remote_monitor_posts_the_loss_of_training_and_that_of_the_average(
    order, server, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, received = server
    monitor = keras.callbacks.RemoteMonitor(url, send_as_json=True)
    train_with(monitor, order)
    assert [post["epoch"] for post in received] == [*range(EPOCHS)]
    assert [post["loss"] for post in received] == expected().loss
    val_losses = [post["val_loss"] for post in received]
    assert val_losses == close(expected().val_loss)


@in_any_order
def test_tensorboard_writes_histograms_of_the_average(order, tmp_path):
    pytest.importorskip("tensorboard", reason="needs TensorBoard")
    board = keras.callbacks.TensorBoard(
        tmp_path, histogram_freq=1, update_freq="batch"
    )
    train_with(board, order)
    training = events(tmp_path / "train")
    validation = events(tmp_path / "validation")
    assert training["epoch_loss"] == close(expected().loss)
    val_losses = close(expected().val_loss)
    assert validation["epoch_loss"] == val_losses
    assert validation["evaluation_loss_vs_iterations"] == val_losses
    # Keras logs the mean of the epoch so far.
    assert training["batch_loss"][STEPS - 1 :: STEPS] == close(expected().loss)
    for index, weight in enumerate(trained_model().weights):
        histograms = training[f"{weight.path}/histogram"]
        for histogram, average in zip(
            histograms, expected().average, strict=True
        ):
            assert_is_histogram_of(average[index], histogram)


def events(directory):
    """The values of each tag in the event file of a directory."""
    import tensorflow

    (file,) = directory.glob("events*.v2")
    found = collections.defaultdict(list)
    for event in tensorflow.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            array = tensorflow.make_ndarray(value.tensor)
            found[value.tag].append(array)
    return dict(found)


def assert_is_histogram_of(values, histogram):
    """Compare rows of left edge, right edge and count with values."""
    ends = histogram[0, 0], histogram[-1, 1]
    assert ends == close((values.min(), values.max()))
    assert histogram[:, 2].sum() == values.size


def tuned(hp):
    """A model for KerasTuner."""
    rate = hp.Choice("rate", [0.3, 0.1])
    return compiled(dense(), keras.optimizers.SGD(rate))


@pytest.mark.filterwarnings(
    "ignore:.*deprecated:DeprecationWarning:keras_tuner"
)
def test_keras_tuner_scores_and_saves_the_average(tmp_path):
    search = keras_tuner.GridSearch(tuned, "val_loss", directory=tmp_path)
    search.search(
        *data(6),
        validation_data=data(2, seed=1),
        callbacks=[EMA(DECAY)],
        **OPTIONS,
    )
    trials = search.oracle.get_best_trials(2)
    assert {trial.hyperparameters.get("rate") for trial in trials} == {0.3, 0.1}
    for trial in trials:
        wanted = expected(trial.hyperparameters.get("rate"))
        epoch = int(numpy.argmin(wanted.val_loss))
        assert trial.score == close(wanted.val_loss[epoch])
        (file,) = tmp_path.glob(f"*/trial_{trial.trial_id}/*.weights.h5")
        assert_has_both(file, epoch, wanted)
    (best,) = search.get_best_models()
    assert score(best) == close(trials[0].score)


def test_scikit_learn_cross_validates_the_average():
    """For several processes see `tests/tools/test_scikit_learn.py`."""
    assert_cross_validates_the_average(n_jobs=1)


def test_scikit_learn_loses_callbacks_that_are_arguments_of_a_wrapper():
    model = SKLearnRegressor(network, fit_kwargs={"callbacks": [EMA(DECAY)]})
    assert clone(model).fit_kwargs is None
