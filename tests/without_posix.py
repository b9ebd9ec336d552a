"""pytest plugin that removes calls that Windows and old macOS do not have.

    python -m pytest -p without_posix tests/files

It is loaded before the package, which checks on import what is available.
"""

import os
import sys

for name in (
    "preadv",
    "pread",
    "pwrite",
    "link",
    "posix_fadvise",
    "O_CLOEXEC",
    "O_NONBLOCK",
):
    delattr(os, name)
sys.modules["fcntl"] = None  # type: ignore[assignment]
