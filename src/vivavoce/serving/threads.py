"""Threads that work beside the one that steps the conversations."""

import contextlib
import os
import threading


def step_back() -> None:
    """The thread that calls this gives way to the one that steps the conversations, where the system knows how."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
