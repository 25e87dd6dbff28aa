"""A server on a free port of this machine, its clock as fast as asked for."""

import contextlib

import pytest

import vivavoce
from serving.calm_clock import CalmClock
from vivavoce.serving.access import Access
from vivavoce.serving.app import DIALECTS, Server, create_app
from vivavoce.serving.clock import Clock
from vivavoce.serving.core import Core
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings


@pytest.fixture
def serve():
    """`serve("tone", dialects=("moshi",), speed=1.0, access=None, rows=4, …)` -> (port, server); stopped at the end."""
    with contextlib.ExitStack() as open_servers:

        def start(model="tone", dialects=DIALECTS, speed=1.0, access=None, transcriber=None, **settings):
            made = vivavoce.load(model) if isinstance(model, str) else model
            clock, chosen = Clock(), {"rows": 4, **settings}
            if speed != 1.0:  # who does not read has as long as at the pace of life, and longer
                clock, chosen = CalmClock(speed), {"outbox": 60.0 * speed, **chosen}
            core = Core(made, made.name, ServerSettings(**chosen), clock, transcriber)
            server = Server(core, access or Access(), drain=0.0)
            port = open_servers.enter_context(running(create_app(server, dialects)))
            return port, server

        yield start


@pytest.fixture
def ring(serve):
    """`ring("tone", …)`: the same for calls, whose packets stay on this machine."""
    from serving.realtime_clients.caller import HERE

    def start(model="tone", dialects=("realtime",), **options):
        port, server = serve(model, dialects, **options)
        server.ice = HERE
        return port, server

    return start
