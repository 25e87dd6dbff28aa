"""No test reaches out: a look-up or a connection beyond this machine fails the test that tries it.

An audit hook hears of every socket of this process, whatever library opens it; other processes are not covered.
"""

import ipaddress
import socket
import sys
from functools import cache
from typing import Any

import pytest

LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENDINGS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def is_local(host: Any) -> bool:
    """Whether a host is this machine: localhost, an address of its own, or none at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or is_own(str(address))


@cache
def is_own(address: str) -> bool:
    """Whether an address is one of this machine's: then, and only then, it can be bound to."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((address, 0))
            return True
        except OSError:
            return False


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
