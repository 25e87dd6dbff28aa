"""TLS: a certificate of the machine's own that others can verify, and files that are checked before they are used."""

import datetime
import re
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from vivavoce.errors import RequestError
from vivavoce.serving import tls
from vivavoce.serving.tls import cache_folder, local_addresses, machine_names, own_certificate, tls_of

LATER = datetime.timedelta(days=tls.DAYS - tls.RENEW)


@pytest.fixture
def on_two_networks(monkeypatch):
    monkeypatch.setattr(tls.socket, "gethostname", lambda: "Lab7.example.org")
    monkeypatch.setattr(tls, "local_addresses", lambda: ["127.0.0.1", "192.168.1.5", "fd00::5", "fe80::1%eth0"])


def shake_hands(made, name):
    """A client that trusts the certificate alone says hello to `name`; the certificate that it saw."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.options()["ssl_certfile"], made.options()["ssl_keyfile"])
    client = ssl.create_default_context(cafile=str(made.certificate))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as later versions of Python have it by default
    here, there = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(there, server_side=True) as link:
                link.recv(1)
        except (ssl.SSLError, OSError):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=name) as link:
            return link.getpeercert(binary_form=True)
    finally:
        here.close()
        thread.join(10)


def test_the_certificate_is_good_for_each_name(tmp_path, on_two_networks):
    made = own_certificate("10.1.2.3", tmp_path / "kept")
    assert set(made.names) == {
        "localhost", "lab7.example.org", "lab7", "lab7.local", "127.0.0.1", "::1", "192.168.1.5", "fd00::5", "10.1.2.3",
    }  # fmt: skip
    for name in made.names:
        seen = x509.load_der_x509_certificate(shake_hands(made, name))
        assert tls.fingerprint_of(seen) == made.fingerprint
    for stranger in ("example.org", "192.168.1.6"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(made, stranger)
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", made.fingerprint)


def test_the_key_is_its_owners_alone(tmp_path):
    made = own_certificate("", tmp_path / "a" / "kept")
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.key.parent.stat().st_mode) == 0o700
    public = (made.key.parent / "certificate.pem").read_text()
    assert "PRIVATE" not in public and public in made.certificate.read_text()
    made.key.chmod(0o644)
    assert own_certificate("", made.key.parent).fingerprint == made.fingerprint
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert sorted(path.name for path in made.key.parent.iterdir()) == ["certificate.pem", "server.pem"]


def test_it_is_kept_and_renewed_in_time(tmp_path, monkeypatch):
    first, today = own_certificate("", tmp_path), tls._now()
    assert own_certificate("", tmp_path).fingerprint == first.fingerprint
    for days, kept in ((-2, True), (2, False)):
        monkeypatch.setattr(tls, "_now", lambda days=days: today + LATER + datetime.timedelta(days=days))
        assert (own_certificate("", tmp_path).fingerprint == first.fingerprint) is kept


def test_another_network_asks_for_another_certificate_and_the_way_back_does_not(tmp_path, monkeypatch):
    def at(*addresses):
        monkeypatch.setattr(tls, "local_addresses", lambda: list(addresses))
        return own_certificate("", tmp_path)

    home, office = at("192.168.1.5"), at("10.0.0.9")
    assert office.fingerprint != home.fingerprint and {"10.0.0.9", "192.168.1.5"} <= set(office.names)
    assert at("192.168.1.5").fingerprint == office.fingerprint


@pytest.mark.parametrize("harm", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "swap"])
def test_what_was_spoiled_is_made_anew(tmp_path, harm):
    first, other = own_certificate("", tmp_path), own_certificate("", tmp_path / "other")
    key = other.certificate.read_text().partition("-----BEGIN PRIVATE")
    mixed = first.certificate.read_text().partition("-----BEGIN PRIVATE")[0] + key[1] + key[2]
    first.certificate.write_text(mixed if harm == "swap" else harm)
    again = own_certificate("", tmp_path)
    assert again.fingerprint != first.fingerprint and shake_hands(again, "localhost")


def test_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tls_of("auto").certificate == tmp_path / "vivavoce" / "tls" / "server.pem"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "vivavoce" / "tls"
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be kept there"):
        own_certificate("", tmp_path / "file" / "kept")


def test_this_machines_own_names():
    names = list(map(str, machine_names("0.0.0.0")))
    assert "localhost" in names and "127.0.0.1" in names and "0.0.0.0" not in names
    assert "127.0.0.1" in local_addresses()
    assert "talk.example" in machine_names("Talk.Example.") and "bad name" not in machine_names("bad name")


@pytest.fixture
def pair(tmp_path):
    """CERT,KEY as somebody else would have made them."""
    made = own_certificate("", tmp_path / "made")
    text = made.certificate.read_text()
    cut = text.index("-----BEGIN PRIVATE")
    (tmp_path / "cert.pem").write_text(text[:cut])
    (tmp_path / "key.pem").write_text(text[cut:])
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_files_of_ones_own(pair):
    given = tls_of(f"{pair[0]}, {pair[1]}")
    assert given.options() == {"ssl_certfile": str(pair[0]), "ssl_keyfile": str(pair[1])}
    assert not given.made and "localhost" in given.names and shake_hands(given, "localhost")


def test_bad_files_are_named(pair, tmp_path, monkeypatch):
    certificate, key = pair
    other = own_certificate("", tmp_path / "other")
    (tmp_path / "empty.pem").write_text("")
    locked = serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    for choice, words in (
        ("on", "'auto' or CERT,KEY"), (f"{certificate},", "'auto' or CERT,KEY"),
        (f"{tmp_path / 'none.pem'},{key}", "none.pem: it cannot be read: No such file"),
        (f"{tmp_path},{key}", "cannot be read: Is a directory"),
        (f"{tmp_path / 'empty.pem'},{key}", "empty.pem: no certificate in PEM form"),
        (f"{key},{key}", "key.pem: no certificate in PEM form"),
        (f"{certificate},{certificate}", "cert.pem: no private key in PEM form"),
        (f"{certificate},{tmp_path / 'locked.pem'}", "locked.pem: the key has a password"),
        (f"{certificate},{other.key}", "server.pem: it is not the key of .*cert.pem"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            tls_of(choice)
    late = tls._now() + datetime.timedelta(days=tls.DAYS)
    monkeypatch.setattr(tls, "_now", lambda: late)
    with pytest.raises(RequestError, match=r"cert.pem: it is good from \d{4}-\d\d-\d\d to .*renew it"):
        tls_of(f"{certificate},{key}")
