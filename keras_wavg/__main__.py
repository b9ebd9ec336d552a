"""`python -m keras_wavg` is `keras-wavg`."""

import signal
import sys
import threading
from typing import Any, NoReturn

_INTERRUPTED = 130  # As shells have it: 128, and the number of the signal.


class _Interrupt(BaseException):
    """Ctrl-C, where nobody but `main` knows it."""


def main() -> None:
    """Run the command. Ctrl-C ends it in one line, while it imports, too."""
    interrupts = []

    def interrupt(*_: Any) -> NoReturn:
        interrupts.append(_Interrupt())
        raise interrupts[-1]

    def interrupt_again(ignored: Any) -> None:
        # Python drops what is raised in a callback of a weak reference (each
        # import has one) and in a destructor.
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
        # Python may make another error of one that is raised while it imports.
        if not interrupts:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
