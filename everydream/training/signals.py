"""Ctrl-C and SIGTERM: the first asks the loop to finish its step and save, a second Ctrl-C leaves at once."""

import os
import signal
from types import FrameType, TracebackType


class StopRequest:
    """Inside the block, `signal` is the number of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # The system's own handler, and before we say so: the next Ctrl-C ends the process whatever it is doing.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        message = "\nStopping after this step; it is being saved. Once more to stop at once, without saving.\n"
        os.write(2, message.encode())  # not print: a handler may interrupt a print
