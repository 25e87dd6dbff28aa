"""What a test waits for: a server notices that a client has gone a moment after the client has."""

import time


def nobody_left(server, seconds: float = 60.0, free: bool = False) -> None:
    """Wait until all conversations have ended (`free`: also until all rows are given back, nobody waits and nobody is
    counted); fail after so long."""
    core, end = server.core, time.monotonic() + seconds

    def gone():
        back = len(core.lockstep.free) == core.lockstep.rows.rows and not len(core.queue) and not server.access._open
        return not core.live and (back or not free)

    while not gone() and time.monotonic() < end:
        time.sleep(0.01)
    assert gone()
