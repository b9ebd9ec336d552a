"""Rewrites errors of the library with the names of command-line options."""

import re
from collections.abc import Mapping

_REPLACEMENTS = {
    "`keras_wavg.inspect_checkpoint`": "`keras-wavg inspect`",
    "See `keras_wavg.select_checkpoints` for those in a directory.": (
        "Pass one directory with --last or --best."
    ),
}


def with_option_names(text: str, options: Mapping[str, str]) -> str:
    """Replace the names of arguments in an error by those of options.

    Args:
        text: String, an error of the library.
        options: Dict from the name of each argument to that of its option.

    Example:

    >>> text = "`last` must be 1. Received: last=2"
    >>> with_option_names(text, {"last": "--last"})
    '--last must be 1. Received: --last 2'
    """
    for library, command in _REPLACEMENTS.items():
        text = text.replace(library, command)
    for name, option in options.items():
        negated = option.replace("--", "--no-", 1)
        text = text.replace(f"`{name}=True`", option)
        text = text.replace(f"`{name}=False`", negated)
        text = re.sub(rf"`{name}=([^`]*)`", rf"`{option} \1`", text)
        text = text.replace(f"`{name}`", option)
        text = re.sub(rf"(?<![\w/.'`-]){name}=(?=\S)", f"{option} ", text)
    return text
