"""What Orbax calls the files and folders of a step."""

METADATA = "_CHECKPOINT_METADATA"
"""The file that tells of the whole step: it is written last."""

PYTREE, TREE = "pytree", "_METADATA"
"""The folder of the arrays, and the file in it that lists them."""

CONFIG = "model_config"
"""The folder with the config of the model."""
