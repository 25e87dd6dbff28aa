"""What a test waits for: a server notices that a client has gone a moment after the client has."""

import time


def nobody_left(server, seconds: float = 60.0) -> None:
    """Wait until all conversations have ended; fail after so long."""
    end = time.monotonic() + seconds
    while server.core.live and time.monotonic() < end:
        time.sleep(0.01)
    assert not server.core.live
