"""Plots of averages: the loss around them, their profiles, their scores.

`plot_loss_plane` draws a score on a plane of weight space: `loss_plane`
measures it, `draw_loss_plane` draws it. `plot_profile` draws the coefficient of
each past step in an average. `plot_history` draws the scores of the raw weights
and of each average by epoch. Plots require matplotlib, which
`pip install "keras-wavg[plots]"` installs.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        'Plots require matplotlib. Run: pip install "keras-wavg[plots]"'
    ) from error

from keras_wavg.plots.contours import draw_loss_plane, plot_loss_plane
from keras_wavg.plots.history import plot_history
from keras_wavg.plots.plane import LossPlane, loss_plane
from keras_wavg.plots.profiles import plot_profile

__all__ = [
    "LossPlane",
    "draw_loss_plane",
    "loss_plane",
    "plot_history",
    "plot_loss_plane",
    "plot_profile",
]
