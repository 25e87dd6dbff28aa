"""Many conversations one after the other: each gives back all that it has taken, and memory stays as it was.

50 of each dialect in `make test`, 1,000 in `make check-long`.
"""

import asyncio
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

from serving.canaries import TONES, by_chat, by_live, by_moshi, by_realtime
from serving.fuzz.runner import serving
from serving.fuzz.watch import census, settled, watching
from serving.moshi_clients.raw import PATIENT
from vivavoce.serving.access import Limits

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
COUNT, AT_ONCE = 1000 if LONG else 50, 5
WARM_UP = 100 if LONG else 20
MOST = (12 if LONG else 6) * 2**20  # bytes: an allocator's unrest
VISITS = {"moshi": by_moshi, "live": by_live, "realtime": by_realtime, "rest": by_chat}


def resident():
    """Bytes of this process that are in memory, what the allocator could give back not counted."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def visits(port, how, count):
    """So many conversations, a few at a time; every third client is killed in the middle."""

    async def some(first):
        for at in range(first, count, AT_ONCE):
            await how(port, TONES[at % len(TONES)], "killed" if at % 3 == 2 and how is not by_chat else "close")

    await asyncio.gather(*(some(first) for first in range(AT_ONCE)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dialect", VISITS)
def test_memory_is_flat_over_many_conversations(dialect):
    how, settings = VISITS[dialect], {**PATIENT, "rows": AT_ONCE, "grace": 0.5, "crowded": 0.5}
    with serving("echo", settings, Limits(conversations=100), speed=20.0) as (port, server,
        loop), watching(loop) as watch:
        asyncio.run(visits(port, how, WARM_UP))
        assert not settled(server, loop, {**census(server, loop), "live": 0, "rows that are not free": 0})
        before, grown = census(server, loop), []
        while len(grown) < 3 and not (grown and grown[-1] < MOST):  # a leak goes on, an allocator's unrest does not
            memory = resident()
            asyncio.run(visits(port, how, COUNT))
            assert not (left := settled(server, loop, before)), left
            grown.append(resident() - memory)
        print(f"{dialect}: {COUNT} conversations, {', '.join(f'{more / 2**20:.1f}' for more in grown)} MiB more")
        assert grown[-1] < MOST
        assert not watch.found, watch.found[:3]
        assert server.core.metrics.ended.labels("echo",
            "closed")._value.get() >= (COUNT // 2 if how is not by_chat else 0)
