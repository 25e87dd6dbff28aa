"""The way to the server: lost and found again, safe or not, with a key, and given back."""

import contextlib
import socket
import threading
import time

import pytest

from browser.talking import begin, hang_up, is_in, until
from vivavoce.serving.access import Access, Key, digest_of
from vivavoce.serving.app import create_app
from vivavoce.serving.run import running
from vivavoce.serving.tls import own_certificate

KEYS = {digest_of(secret): Key(secret, digest_of(secret)) for secret in ("right-key", "other-key")}


class Wire:
    """A port that passes everything on to another one, and can be cut; or `still`: nobody notices that nothing comes
    through."""

    def __init__(self, port: int):
        self.target, self.whole, self.still = port, True, False
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self.ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.still:
                    to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Nothing comes through any more."""
        self.whole = False
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """New connections come through again."""
        self.whole, self.still = True, False

    def close(self) -> None:
        """Cut it for good."""
        self.cut()
        self.listening.close()


@pytest.fixture
def wire():
    """`wire(port)` -> a `Wire` to it."""
    with contextlib.ExitStack() as open_wires:

        def stretch(port: int) -> Wire:
            made = Wire(port)
            open_wires.callback(made.close)
            return made

        yield stretch


def test_a_lost_connection_comes_back(serve, wire, open_page, photograph):
    port, server = serve("tone", dialects=("live", "page"))
    line = wire(port)
    page = open_page(f"http://127.0.0.1:{line.port}/")
    begin(page)
    (talking,) = server.core.live
    page.wait("document.querySelector('.turn')")
    line.cut()
    page.wait(is_in("lost"))
    assert page.text("#status").startswith("The connection is lost: trying to come back. ")
    photograph(page, "lost")
    time.sleep(1.5)
    line.mend()
    page.wait(is_in("talking"))
    assert "Connected again" in page.text("#notices") and "The connection was lost for" in page.text("#turns")
    photograph(page, "resumed")
    assert list(server.core.live) == [talking]
    count = page.evaluate("document.querySelectorAll('.turn').length")
    page.wait(f"document.querySelectorAll('.turn').length > {count}")  # it goes on
    hang_up(page)
    assert until(lambda: not server.core.live)
    page.faults.clear()  # the browser's own word about the cut connection


def test_a_connection_that_nothing_comes_through_is_noticed(serve, wire, open_page):
    port, server = serve("tone", dialects=("live", "page"))
    line = wire(port)
    page = open_page(f"http://127.0.0.1:{line.port}/")
    begin(page)
    (talking,) = server.core.live
    line.still = True
    page.wait(is_in("lost"))
    line.mend()
    page.wait(is_in("talking"))  # though for the server the first connection is still there
    assert list(server.core.live) == [talking]
    page.wait("document.querySelector('.turn.model')")
    hang_up(page)
    assert until(lambda: not server.core.live)
    page.faults.clear()


def test_a_connection_that_does_not_come_back(serve, wire, open_page):
    port, _ = serve("tone", dialects=("live", "page"), grace=2.0)
    line = wire(port)
    page = open_page(f"http://127.0.0.1:{line.port}/")
    begin(page)
    line.cut()
    page.wait("document.querySelector('[data-code=connection_lost]')")
    assert "It did not come back in time." in page.text("#notices")
    page.wait(is_in("idle"))
    page.press("[data-code=connection_lost] button")
    page.wait("document.querySelector('[data-code=unreachable]')")
    line.mend()
    page.press("[data-code=unreachable] button")
    page.wait(is_in("talking"))
    hang_up(page)
    page.faults.clear()


def test_an_unsafe_address_is_explained(serve, open_page, photograph):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://talk.test:{port}/")  # no https, not this machine's own name
    assert page.evaluate("window.isSecureContext") is False
    assert f"http://localhost:{port}" in page.text("#notices") and "--tls auto" in page.text("#notices")
    assert page.evaluate("document.getElementById('talk').disabled")
    photograph(page, "insecure")


def test_with_the_machines_own_certificate_it_is_safe(serve, open_page, tmp_path, monkeypatch):
    _, server = serve("tone", dialects=("live", "page"))
    made = own_certificate("talk.test", tmp_path)
    with running(create_app(server, ("live", "page")), **made.options()) as port:
        page = open_page(f"https://talk.test:{port}/")
        assert page.evaluate("window.isSecureContext") is True
        begin(page)
        assert f"wss://talk.test:{port}/v1/live/sessions?status=1" in page.requests
        page.wait("document.querySelector('.turn')")
        hang_up(page)


def test_a_key_is_asked_for(serve, open_page, photograph):
    port, server = serve("tone", dialects=("live", "page"), access=Access(KEYS))
    page = open_page(f"http://127.0.0.1:{port}/")
    page.press("#talk")
    page.wait("document.querySelector('[data-code=missing_api_key] input')")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Key"
    photograph(page, "key")
    for key, code in (("wrong", "invalid_api_key"), ("not a key", "key_unsendable")):
        page.send("Input.insertText", text=key)
        page.key("Enter", "Enter", text="\r")
        page.wait(f"document.querySelector('[data-code={code}] input')")
    page.send("Input.insertText", text="right-key")
    page.key("Enter", "Enter", text="\r")
    page.wait(is_in("talking"))
    assert [c.client.key for c in server.core.live.values()] == ["right-key"]
    hang_up(page)
    assert not any("right-key" in url for url in page.requests)


def test_a_page_that_is_closed_gives_its_place_back(serve, open_page):
    port, server = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page)
    assert len(server.core.live) == 1
    page.go("about:blank")
    assert until(lambda: not server.core.live)
