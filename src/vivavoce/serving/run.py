"""A server on a port: in this thread until it is stopped, or in one of its own."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from vivavoce.errors import RequestError, need


def configure(app: Any, host: str, port: int, door: Any = None, **options: Any) -> Any:
    """uvicorn's server for `app`: WebSocket pings each 10 s, lost after 20 s without an answer; frames of sound are not
    compressed; `door`: how long connections may take, a `Patience`."""
    uvicorn = need("uvicorn", "serve", "a server")
    from vivavoce.serving.door import Doorkeeper, Patience, Quiet, protocols

    server = app.state.server
    limits = server.access.limits
    keeper = Doorkeeper(door or Patience(connections=max(limits.connections, 4 * limits.conversations)))
    http, socket_protocol = protocols(keeper)

    class Draining(uvicorn.Server):  # type: ignore[misc, name-defined]
        """uvicorn closes all sockets before the application hears of the end: conversations are to end first."""

        async def on_tick(self, counter: int) -> bool:
            if counter % 10 == 0:  # once a second
                keeper.look(self.server_state.connections, time.monotonic())
            return await super().on_tick(counter)

        async def shutdown(self, sockets: Any = None) -> None:
            for listening in self.servers:
                listening.close()
            await server.core.stop(server.drain, lambda: self.force_exit)
            try:
                await super().shutdown(sockets)
                if self.force_exit:  # then uvicorn leaves this out: but recordings are to be whole
                    await self.lifespan.shutdown()
            except Exception as error:  # a connection that is being closed already must not keep the rest from ending
                logging.getLogger(__name__).warning("while the server ended: %s", error)
                await self.lifespan.shutdown()

    chosen = {
        "host": host, "port": port, "log_level": "warning", "access_log": False, "http": http,
        "ws": socket_protocol,
        "ws_ping_interval": 10.0, "ws_ping_timeout": 20.0, "ws_per_message_deflate": False,
        # Beyond this uvicorn ends the connection without a word: dialects refuse sooner, in their own form.
        "ws_max_size": 2 * server.access.limits.message, "timeout_graceful_shutdown": 5, "server_header": False,
    }
    config = uvicorn.Config(app, **{**chosen, **options})
    log = logging.getLogger("uvicorn.error")
    if not any(isinstance(each, Quiet) for each in log.filters):
        log.addFilter(Quiet())
    return Draining(config)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; raises `RequestError` naming what is in the way."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio sends what is written at once (TCP_NODELAY): a second small message would
        # wait for the other side's word that it has the first, for 40 ms.
        made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a peer that neither reads nor answers is gone after half a minute
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        made.bind((host, port))
        return made
    except (OSError, OverflowError) as error:
        raise RequestError(f"{host}:{port} cannot be listened to: {error}; choose another --port") from error


@contextlib.contextmanager
def running(app: Any, host: str = "127.0.0.1", port: int = 0, patience: float = 60.0, **options: Any) -> Iterator[int]:
    """`with running(app) as port:` the server runs in a thread of its own while the block does."""
    made = bind(host, port)
    server = configure(app, host, made.getsockname()[1], **options)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, name="vivavoce-server", daemon=True)
    thread.start()
    end = time.monotonic() + patience
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    if not server.started:
        raise RequestError("the server did not start: its log says why")
    try:
        yield made.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        made.close()
