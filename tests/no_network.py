"""No test reaches out: a look-up or a connection beyond this machine fails the test that tries it.

An audit hook hears of every socket of this process, whatever library opens it; other processes are not covered.
"""

import ipaddress
import socket
import sys
from typing import Any

import pytest

LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDINGS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def is_local(host: Any) -> bool:
    """Whether a host is this machine: localhost, a loopback address, or none at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """The hook. pytest's failure is no `Exception`: no library takes it for a network that is down."""
    if event in LOOK_UPS:
        host = arguments[0]
    elif event in SENDINGS:
        carrier, address = arguments
        if carrier.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
            return
        host = address[0]
    else:
        return
    if not is_local(host):
        pytest.fail(f"a test reaches out to {host!r} ({event}): tests run without a network")


def pytest_configure():
    sys.addaudithook(refuse)  # to the end of the process: such hooks stay
