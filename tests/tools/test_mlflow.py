"""What MLflow logs and saves when an average is in the callbacks."""

import keras
import mlflow
import pytest
from logged import (
    DECAY,
    EPOCHS,
    STEPS,
    another_model,
    assert_are_close,
    assert_has_both,
    close,
    expected,
    in_any_order,
    train_with,
    trained_model,
)

from keras_wavg import EMA, resume

AUTOLOGS = {
    "mlflow.autolog": mlflow.autolog,
    "mlflow.keras.autolog": mlflow.keras.autolog,
    "mlflow.tensorflow.autolog": mlflow.tensorflow.autolog,
}


@pytest.fixture(scope="module", autouse=True)
def _database(tmp_path_factory):
    """An empty database, which takes seconds to make."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{file}")


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """The directory for the files of a run."""
    # A process that finds the requirements of a saved model takes long.
    monkeypatch.setenv("MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT", "1")
    experiment = mlflow.create_experiment(tmp_path.name, tmp_path.as_uri())
    with mlflow.start_run(experiment_id=experiment):
        yield tmp_path


def logged(metric):
    """The steps and the values of a metric of the run."""
    mlflow.flush_async_logging()
    run = mlflow.active_run().info.run_id
    found = mlflow.MlflowClient().get_metric_history(run, metric)
    return [item.step for item in found], [item.value for item in found]


def check_metrics():
    """Compare what is logged for each epoch."""
    epochs = [*range(EPOCHS)]
    assert logged("loss") == (epochs, close(expected().loss))
    assert logged("val_loss") == (epochs, close(expected().val_loss))
    # MLflow does not pass the epoch.
    assert logged("validation_loss") == ([0, 0], close(expected().val_loss))


@in_any_order
def test_callback_logs_the_loss_of_training_and_that_of_the_average(order):
    train_with(mlflow.keras.MlflowCallback(), order)
    check_metrics()


@in_any_order
def test_callback_logs_the_loss_of_training_for_each_batch(order):
    callback = mlflow.keras.MlflowCallback(False, log_every_n_steps=1)
    train_with(callback, order)
    steps, losses = logged("loss")
    assert steps == [*range(1, EPOCHS * STEPS + 1)]
    # Keras logs the mean of the epoch so far.
    assert losses[STEPS - 1 :: STEPS] == close(expected().loss)


@pytest.fixture(params=AUTOLOGS)
def autolog(request):
    """One of the functions that log each `fit`, for one test."""
    expected()
    trained_model()
    AUTOLOGS[request.param](silent=True)
    yield request.param
    AUTOLOGS[request.param](disable=True)


def test_autolog_saves_the_average_and_the_raw_weights(autolog, directory):
    train_with(keras.callbacks.Callback())
    check_metrics()
    (file,) = directory.rglob("model.keras")
    assert_has_both(file)
    checkpoints = [*directory.rglob("*.h5")]
    assert len(checkpoints) == (autolog != "mlflow.keras.autolog")
    for file in checkpoints:
        assert_has_only_the_best_average(file)


def assert_has_only_the_best_average(file):
    """Check a file in the legacy format, which has no state of averages."""
    losses = expected().val_loss
    best = expected().average[losses.index(min(losses))]
    model = another_model()
    with pytest.warns(UserWarning, match="no average with this name"):
        resume(model, file, [EMA(DECAY)])
    assert_are_close(model.get_weights(), best)
