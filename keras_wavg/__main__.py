"""`python -m keras_wavg` is `keras-wavg`."""

import signal
import sys
from typing import Any, NoReturn

_INTERRUPTED = 130  # As shells have it: 128, and the number of the signal.


class _Interrupt(BaseException):
    """Ctrl-C, where nobody but `main` knows it."""


def _interrupt(*_: Any) -> NoReturn:
    raise _Interrupt


def main() -> None:
    """Run the command. Ctrl-C ends it in one line, while it imports, too."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        from keras_wavg.cli import app  # noqa: PLC0415

        app(prog_name="keras-wavg")
    except _Interrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
