"""Ctrl-C and SIGTERM end a run; neither is lost.

Python raises KeyboardInterrupt wherever it happens to be. In a finalizer of some library that exception is
dropped, and the run would go on: so the wish is remembered, and asked for after every step. Nor is it printed
there, as Python would, with a traceback that nobody can do anything about.

A transaction broken by it would keep the tracking store locked to the run that is about to say how it ended:
there the first wish waits.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_wished = False
_dropped_before = sys.unraisablehook
_here = threading.local()  # signals come to the main thread, whatever the others do


def listen() -> dict[int, Any]:
    """Hear both signals from now on; returns the handlers before, for `restore`.

    Outside the main thread it is not possible, nor needed: there somebody else listens.
    """
    global _wished, _dropped_before
    _wished = False
    try:
        handlers = {number: signal.signal(number, _hear) for number in SIGNALS}
    except ValueError:
        return {}
    if sys.unraisablehook is not _dropped:
        _dropped_before, sys.unraisablehook = sys.unraisablehook, _dropped
    return handlers


def restore(handlers: dict[int, Any]) -> None:
    """Put the handlers back that `listen` returned; what was wished for ended with the run."""
    global _wished
    _wished = False
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if sys.unraisablehook is _dropped:
        sys.unraisablehook = _dropped_before


def check() -> None:
    """Raise KeyboardInterrupt if a signal came."""
    if _wished:
        raise KeyboardInterrupt


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Within, a first signal waits for the end; a second one does not."""
    outermost = not getattr(_here, "postpones", False)
    before = _wished
    _here.postpones = True
    try:
        yield
    finally:
        _here.postpones = not outermost
    if outermost and not before:
        check()


def _dropped(told: Any) -> None:
    if not issubclass(told.exc_type, KeyboardInterrupt):
        _dropped_before(told)


def _hear(number: int, frame: Any) -> None:
    global _wished
    first, _wished = not _wished, True
    if not (first and getattr(_here, "postpones", False)):
        raise KeyboardInterrupt
