"""HTTPS, which browsers want before a page may use the microphone: a certificate made for this machine, or one's own.

A self-signed certificate is named by its fingerprint: who sees the same one in the browser talks to this machine.
"""

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivavoce.errors import RequestError, need

DAYS = 397  # browsers refuse certificates that are good for longer
RENEW = 30  # days before the end
MOST_NAMES = 64  # of networks that the machine has been in
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Name = str | Address


@dataclass(frozen=True)
class Tls:
    """A certificate and its key as files. `fingerprint`: SHA-256 of the certificate, "AB:CD:…"; `names`: host names
    and addresses it is good for; `made`: whether it was made here, so that browsers ask before they trust it."""

    certificate: Path
    key: Path
    fingerprint: str
    names: tuple[str, ...]
    made: bool

    def options(self) -> dict[str, str]:
        """What uvicorn's configuration takes."""
        return {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}


def tls_of(choice: str, host: str = "", folder: Path | None = None) -> Tls:
    """`choice` as it is typed: "auto", or "CERT,KEY" (PEM files; CERT may hold its chain). `host`: what the server is
    bound to. Raises `RequestError` that says what is wrong with which file."""
    if choice == "auto":
        return own_certificate(host, folder)
    certificate, comma, key = choice.partition(",")
    if not comma or not certificate.strip() or not key.strip():
        raise RequestError(f"--tls {choice}: 'auto' or CERT,KEY (two PEM files) is expected")
    return given_certificate(Path(certificate.strip()).expanduser(), Path(key.strip()).expanduser())


# -- a certificate of one's own --


def given_certificate(certificate: Path, key: Path) -> Tls:
    """Check two PEM files: they can be read, belong together, and are good today."""
    found = _read_certificate(certificate)
    secret = _read_key(key)
    if _public(found) != _public(secret):
        raise RequestError(f"{key}: it is not the key of {certificate}: give the two files that were made together")
    now = _now()
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        start, end = (f"{when:%Y-%m-%d}" for when in (found.not_valid_before_utc, found.not_valid_after_utc))
        raise RequestError(f"{certificate}: it is good from {start} to {end}, not today: renew it")
    _check_with_ssl(certificate, key)
    return Tls(certificate, key, fingerprint_of(found), tuple(map(str, _names_of(found))), made=False)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: it cannot be read: {error.strerror or error}") from error


def _read_certificate(path: Path) -> Any:
    x509 = need("cryptography.x509", "serve", "TLS")
    pem = _read(path)
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise RequestError(f"{path}: no certificate in PEM form ('-----BEGIN CERTIFICATE-----') is in it") from error


def _read_key(path: Path) -> Any:
    serialization = need("cryptography.hazmat.primitives.serialization", "serve", "TLS")
    unsupported = need("cryptography.exceptions", "serve", "TLS").UnsupportedAlgorithm
    pem = _read(path)
    try:
        return serialization.load_pem_private_key(pem, None)
    except TypeError as error:
        plain = f"openssl pkey -in {path.name} -out plain.pem"
        raise RequestError(f"{path}: the key has a password: take it off with '{plain}'") from error
    except (ValueError, unsupported) as error:
        raise RequestError(f"{path}: no private key in PEM form ('-----BEGIN PRIVATE KEY-----') is in it") from error


def _check_with_ssl(certificate: Path, key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise RequestError(f"{certificate}: TLS does not take it: {error}") from error


# -- a certificate for this machine --


def own_certificate(host: str = "", folder: Path | None = None) -> Tls:
    """The certificate of this machine, made where there is none yet, or none for its names, or it ends soon.

    Kept in `folder` (default: `cache_folder()`): `server.pem` holds certificate and key, for its owner alone;
    `certificate.pem` the certificate, to give to others. Names of before stay in a new one, so that a machine that
    goes from one network to the other and back does not need a new one each time.
    """
    folder = cache_folder() if folder is None else folder
    both = folder / "server.pem"
    wanted = machine_names(host)
    found = _kept(both)
    if found is None or _ends_soon(found) or not set(wanted) <= set(_names_of(found)):
        before = [] if found is None else _names_of(found)
        names = list(dict.fromkeys([*wanted, *before]))[: max(MOST_NAMES, len(wanted))]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = _make(names, both, folder / "certificate.pem")
        except OSError as error:
            raise RequestError(f"{folder}: the certificate cannot be kept there: {error.strerror or error}") from error
    _check_with_ssl(both, both)
    return Tls(both, both, fingerprint_of(found), tuple(map(str, _names_of(found))), made=True)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/vivavoce/tls`, or `~/.cache/vivavoce/tls`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vivavoce" / "tls"


def _kept(both: Path) -> Any:
    """The certificate that was made before; None where there is none that can be used."""
    try:
        found = _read_certificate(both)
        if _public(found) != _public(_read_key(both)):
            return None
    except RequestError:
        return None
    both.chmod(0o600)
    return found


def _ends_soon(certificate: Any) -> bool:
    now = _now()
    early = certificate.not_valid_before_utc > now  # the clock was wrong when it was made
    return early or certificate.not_valid_after_utc - now < datetime.timedelta(days=RENEW)


def _make(names: list[Name], both: Path, public: Path) -> Any:
    """A new key and a certificate for `names`, written to `both`, the certificate alone to `public`."""
    x509 = need("cryptography.x509", "serve", "TLS")
    hashes = need("cryptography.hazmat.primitives.hashes", "serve", "TLS")
    ec = need("cryptography.hazmat.primitives.asymmetric.ec", "serve", "TLS")
    serialization = need("cryptography.hazmat.primitives.serialization", "serve", "TLS")
    oid = need("cryptography.x509.oid", "serve", "TLS")
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, f"vivavoce on {socket.gethostname()}"[:64])])
    now = _now()
    others = [x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name) for name in names]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = (
        x509.CertificateBuilder()
        .subject_name(title)
        .issuer_name(title)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of others may be late
        .not_valid_after(now + datetime.timedelta(days=DAYS - 1))
        .add_extension(x509.SubjectAlternativeName(others), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(both, pem + secret, 0o600)
    _write(public, pem, 0o644)
    return made


def _write(path: Path, data: bytes, mode: int) -> None:
    """All at once, and never with more rights than `mode`: somebody else may be reading."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(data)
    new.replace(path)


def fingerprint_of(certificate: Any) -> str:
    """SHA-256 of a certificate as browsers show it: "AB:CD:…"."""
    hashes = need("cryptography.hazmat.primitives.hashes", "serve", "TLS")
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _names_of(certificate: Any) -> list[Name]:
    x509 = need("cryptography.x509", "serve", "TLS")
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*named.get_values_for_type(x509.DNSName), *named.get_values_for_type(x509.IPAddress)]


def _public(holder: Any) -> bytes:
    serialization = need("cryptography.hazmat.primitives.serialization", "serve", "TLS")
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return holder.public_key().public_bytes(serialization.Encoding.DER, form)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# -- what this machine is called --


def machine_names(host: str = "") -> list[Name]:
    """Host names and addresses at which this machine may be reached; `host`, what a server is bound to, among them."""
    here = socket.gethostname().lower().rstrip(".")
    short = here.split(".")[0]
    names: list[Name] = ["localhost", here, short, f"{short}.local", host.lower().rstrip(".")]
    found: list[Name] = [name for name in names if isinstance(name, str) and _is_host_name(name)]
    numbers = ["127.0.0.1", "::1", host, *local_addresses()]
    return list(dict.fromkeys([*found, *_usable(numbers)]))


def local_addresses() -> list[str]:
    """Addresses of this machine's network interfaces, without asking the network."""
    if sys.platform == "linux":
        return [*_interfaces_ipv4(), *_interfaces_ipv6()]
    return _routed()


def _interfaces_ipv4() -> list[str]:
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(any_socket, 0x8915, request)  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            found.append(socket.inet_ntoa(answer[20:24]))
    return found


def _interfaces_ipv6() -> list[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    return [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in lines if line.split()]


def _routed() -> list[str]:
    """The addresses that packets to far away would have as their source; none is sent. And the host name's."""
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                found.append(probe.getsockname()[0])
        except OSError:
            continue
    with contextlib.suppress(OSError):
        found += [str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None)]
    return found


def _usable(numbers: Iterable[str]) -> list[Address]:
    """Addresses that somebody could type: no wildcards, and no link-local ones of IPv6, which need a zone."""
    found = []
    for number in numbers:
        try:
            address = ipaddress.ip_address(number.split("%")[0])
        except ValueError:
            continue
        if not (address.is_unspecified or address.is_multicast or (address.version == 6 and address.is_link_local)):
            found.append(address)
    return found


def _is_host_name(name: str) -> bool:
    if not name or len(name) > 253 or not name.isascii():
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return all(part and len(part) <= 63 and part.replace("-", "").isalnum() for part in name.split("."))
    return False
