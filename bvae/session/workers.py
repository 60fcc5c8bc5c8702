"""The processes of a pytest session: how tests are dealt to them, how they react to signals and end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from itertools import chain
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bvae.session.folder import Session


def in_turns(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return tests in the order in which pytest-xdist deals each worker one in turn.

    Of the first tests it deals each worker two in a row, because a worker must know the next one.
    """
    if len(items) < 2 * workers:
        return items  # it deals one by one
    pairs = zip(items[:workers], items[workers : 2 * workers], strict=True)
    return [*chain.from_iterable(pairs), *items[2 * workers :]]


def repeat_dropped_interruptions() -> None:
    """Raise again a KeyboardInterrupt that Python dropped.

    Python only reports what is raised in `__del__` or in the callback of a weak reference, also on Ctrl-C.
    """
    report = sys.unraisablehook

    def repeat(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
            report(dropped)
            return
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    sys.unraisablehook = repeat


def follow_controller(session: Session) -> None:
    """Ignore signals, and end with the controller or when it says so, even in the middle of a step.

    A terminal sends Ctrl-C to workers too. If it ended them, they would be reported as crashed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    controller = os.getppid()

    def watch() -> None:
        while os.getppid() == controller and not session.stopped:
            time.sleep(0.2)
        os._exit(1)  # files are whole or absent, so any moment will do

    threading.Thread(target=watch, daemon=True).start()
