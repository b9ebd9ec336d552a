"""`python -m keras_wavg` is `keras-wavg`."""

from keras_wavg.cli import app

app(prog_name="keras-wavg")
