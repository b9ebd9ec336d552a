"""Errors of the library in the words of the command line."""

import re
from collections.abc import Mapping

_ELSEWHERE = {
    "`keras_wavg.inspect_checkpoint`": "`keras-wavg inspect`",
    "See `keras_wavg.select_checkpoints` for those in a folder.": (
        "Pass one folder with --last or --best."
    ),
}


def as_typed(text: str, options: Mapping[str, str]) -> str:
    """An error that names options as they are typed.

    Args:
        text: String, an error of the library.
        options: Dict from the names of arguments to what is typed for them.

    Example:

    >>> as_typed("`last` must be 1. Received: last=2", {"last": "--last"})
    '--last must be 1. Received: --last 2'
    """
    for library, command in _ELSEWHERE.items():
        text = text.replace(library, command)
    for name, typed in options.items():
        off = typed.replace("--", "--no-", 1)
        text = text.replace(f"`{name}=True`", typed)
        text = text.replace(f"`{name}=False`", off)
        text = re.sub(rf"`{name}=([^`]*)`", rf"`{typed} \1`", text)
        text = text.replace(f"`{name}`", typed)
        text = re.sub(rf"(?<![\w/.'`-]){name}=(?=\S)", f"{typed} ", text)
    return text
