"""The names of files and directories in the directory of a step."""

METADATA = "_CHECKPOINT_METADATA"
"""The file with the metadata of the step. It is written last."""

PYTREE, TREE = "pytree", "_METADATA"
"""The directory of the arrays, and the file in it that lists them."""

CONFIG = "model_config"
"""The directory with the config of the model."""
