"""A notebook shows each object of this package on one line."""

import nbclient
import nbformat
import pytest

TRAIN = """
import keras, numpy
from keras_wavg import *

x = numpy.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x[:, :1]
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
name = "{epoch}-{val_loss:.4f}.weights.h5"
checkpoint = keras.callbacks.ModelCheckpoint(name, save_weights_only=True)
ema = EMA(0.8)
evaluator = AverageEvaluator(x, y, averages=[ema])
options = {"validation_split": 0.5, "verbose": 0}
callbacks = [ema, evaluator, checkpoint]
history = model.fit(x, y, epochs=3, callbacks=callbacks, **options)
"""
REPORTS = """
files = select_checkpoints(".", best=2)
average = average_checkpoints(files, "average.weights.h5")
soup = greedy_soup(files, lambda path: 1, "soup.weights.h5", verbose=0)
ema.save_weights("ema.weights.h5")
made = synthesize(["ema.weights.h5"], "made.weights.h5", decay=0.8)
inspected = inspect_checkpoint("made.weights.h5")
difference = diff_checkpoints("made.weights.h5", "average.weights.h5")
"""
# The last line of a cell, and what the notebook shows begins with.
SHOWN = {
    "ema": "<EMA(decay=0.8, name='ema'): average of 3 optimizer steps, in the "
    "model>",
    "SWA(1, batch_norm_data=x)": "<SWA(start_epoch=1, ",
    "SWAG(rank=2)": "<SWAG(rank=2, ",
    "evaluator": "AverageEvaluator(averages=['ema'], ",
    "CyclicLearningRate(0.1, 0.01, 4)": "CyclicLearningRate(max_learning_rate=",
    "ema.profile()": "Profile(samples=3, ",
    "plots.plot_profile(ema.profile())": "<Axes: ",
    "files": "Selection(",
    "average": "AverageReport(",
    "soup": "SoupReport(",
    "soup.trials[0]": "Trial(",
    "made": "SynthesisReport(",
    "made.solution": "Solution(",
    "inspected": "Inspection(",
    "difference": "Difference(",
    "difference.distances['layers/dense/vars/0']": "Distance(",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells of a notebook that was run, by their code."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(code) for code in (TRAIN, REPORTS, *SHOWN)
    ]
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    return {cell.source: cell for cell in notebook.cells}


def test_training_and_reports_print_nothing(cells):
    assert cells[TRAIN].outputs == []
    assert cells[REPORTS].outputs == []


@pytest.mark.parametrize("code", SHOWN)
def test_an_object_is_shown_on_one_line_without_addresses(code, cells):
    shown, *figures = cells[code].outputs
    text = shown.data["text/plain"]
    assert text.startswith(SHOWN[code])
    assert "\n" not in text
    assert "0x" not in text
    assert len(figures) == code.startswith("plots.")
    assert all("image/png" in figure.data for figure in figures)
