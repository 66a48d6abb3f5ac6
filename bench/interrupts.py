"""Ctrl-C and SIGTERM as a fact to look at, not an exception at a random place: a record is never half handled."""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["Interrupts"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While entered, the signals set `received` and make `fileno()` readable, so that a wait for it ends."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Interrupts:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            os.write(self._write, b"!")
        self.received = number
