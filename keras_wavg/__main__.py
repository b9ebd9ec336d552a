"""Runs the command `keras-wavg`, also as `python -m keras_wavg`."""

import signal
import sys
import threading
from typing import Any, NoReturn

_INTERRUPTED = 130  # As in shells: 128 plus the number of the signal.


class _Interrupt(BaseException):
    """Ctrl-C, as an exception that only `main` catches."""


def main() -> None:
    """Run the command. Ctrl-C ends it with one line, even during imports."""
    interrupts = []

    def interrupt(*_: Any) -> NoReturn:
        interrupts.append(_Interrupt())
        raise interrupts[-1]

    def interrupt_again(ignored: Any) -> None:
        # Python ignores exceptions in destructors and in callbacks of weak
        # references, which each import has.
        if isinstance(ignored.exc_value, _Interrupt):
            threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
        else:
            sys.__unraisablehook__(ignored)

    sys.unraisablehook = interrupt_again
    signal.signal(signal.SIGINT, interrupt)
    try:
        from keras_wavg.cli import app  # noqa: PLC0415

        app(prog_name="keras-wavg")
    except BaseException:
        # During imports, Python may replace the exception by another one.
        if not interrupts:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
