"""The guard of the suite itself: nothing beyond this machine is reached, this machine is."""

import contextlib
import socket
import urllib.request

import pytest

refused = pytest.raises(pytest.fail.Exception, match="a test reaches out to")


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1", "2001:db8::1"])
def test_other_machines_are_refused(host):
    with refused:
        socket.getaddrinfo(host, 80)
    with refused:
        socket.create_connection((host, 80), timeout=0.1)


def test_refused_before_anything_is_sent():
    with socket.socket() as stream, refused:
        stream.connect(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as datagram, refused:
        datagram.sendto(b"", ("192.0.2.1", 80))


def test_no_library_takes_it_for_a_network_that_is_down():
    with refused, contextlib.suppress(Exception):
        urllib.request.urlopen("http://192.0.2.1", timeout=0.1)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached(host):
    with socket.create_server((host, 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_unix_sockets_are_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # their paths are short
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        client.connect("s")
