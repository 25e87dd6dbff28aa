"""Who may talk, and how much: keys, origins, limits. Every refusal has a code for machines and words for people."""

import hashlib
import hmac
import ipaddress
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml

from vivavoce.errors import RequestError

SCOPES = ("talk", "rest", "observe", "metrics")
USUAL_SCOPES = ("talk", "rest")  # of a key that names none: to listen to other people's conversations is no default
EPHEMERAL = "ek_"
Who = tuple[str, str]  # whose conversations are counted: ("key", "key 'app'"), ("address", "address 10.0.0.1")


class Denied(Exception):
    """A request that is not let in: `code`, words, and the HTTP status that goes with it."""

    def __init__(self, code: str, message: str, status: int, retry_after: float | None = None):
        super().__init__(message)
        self.code, self.status, self.retry_after = code, status, retry_after


@dataclass(frozen=True)
class Limits:
    """What one key, and one address, may have at most; sizes in bytes, `rate` in messages a second.

    `message`: a WebSocket message; `body`: an HTTP body; `burst`: messages that may come at once; `connections`: of an
    address, whatever they are for (at least four for each conversation).
    """

    conversations: int = 16
    connections: int = 512
    message: int = 20 * 2**20
    body: int = 25 * 2**20
    rate: float = 400.0
    burst: int = 4000


@dataclass(frozen=True)
class Key:
    """A key as it is at rest: its name and the SHA-256 of the secret; `scopes` says what it opens."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = SCOPES
    conversations: int | None = None


@dataclass
class Visitor:
    """Somebody who was let in: the name of the key (None where no keys are asked for), address, limits.

    ephemeral: the digest of the ephemeral key that it came with; `key` is then the one that has made it.
    """

    key: str | None
    address: str
    limits: Limits
    scopes: tuple[str, ...] = SCOPES
    ephemeral: str | None = None


class Sealed(Protocol):
    """Ephemeral keys that carry what they are for, sealed, so that each of several servers can read them."""

    def seal(self, key: str, seconds: float, session: Any) -> str:
        """What follows `EPHEMERAL` in a secret that is good for `seconds`; raises `Denied`."""

    def open(self, sealed: str) -> tuple[str, float, Any] | None:
        """(name of the key, seconds that are left, session); None for what was not sealed here."""


@dataclass
class Access:
    """The rules of one server. Without `keys` every key and none is good, which is for this machine only.

    keys: by the SHA-256 of their secret. origins: pages that may talk ("https://example.org"); a page that the server
    itself has served may always. `now` is the time in seconds.

    Where several servers answer at one address, `sealed` makes ephemeral keys that all of them know, and
    `elsewhere(who)` says how many conversations somebody has at the others.
    """

    keys: Mapping[str, Key] = field(default_factory=dict)
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    sealed: Sealed | None = None
    elsewhere: Callable[[Who], int] = lambda who: 0
    _ephemeral: dict[str, tuple[Key, float, Any]] = field(default_factory=dict)
    _open: Counter = field(default_factory=Counter)

    def visit(
        self, headers: Mapping[str, str], address: str, scope: str, now: float, query: Mapping[str, str] | None = None,
        protocols: Iterable[str] = (), local: bool = True,
    ) -> Visitor:
        """Let somebody in, or raise `Denied`.

        The key is taken from `Authorization: Bearer`, `X-API-Key`, the query's `api_key` or `auth_id`, or a browser's
        subprotocol `openai-insecure-api-key.…`. `local`: whether the server is bound to this machine alone.
        """
        self._check_origin(headers, local)
        key = self._key(secret_of(headers, query or {}, protocols), now)
        if key is None:
            return Visitor(None, address, self.limits)
        if scope not in key.scopes:
            raise Denied("scope_missing", f"the key '{key.name}' does not open {scope}: ask for one that does", 403)
        most = self.limits.conversations if key.conversations is None else key.conversations
        ephemeral = key.sha256 if key.sha256 not in self.keys else None
        return Visitor(key.name, address, replace(self.limits, conversations=most), key.scopes, ephemeral)

    def enter(self, visitor: Visitor) -> None:
        """One more conversation of the visitor's; raises `Denied` beyond a limit. `leave` gives it back."""
        counted = self._counted(visitor)
        for who, most in counted.items():
            if self._open[who] + self.elsewhere(who) >= most:
                words = f"{who[1]} has {most} conversation{'s' * (most != 1)} already: end one first"
                raise Denied("too_many_conversations", words, 429, 5.0)
        self._open.update(counted.keys())

    def leave(self, visitor: Visitor) -> None:
        """A conversation of the visitor's has ended."""
        for who in self._counted(visitor):
            self._open[who] -= 1
            if self._open[who] <= 0:
                del self._open[who]

    def ephemeral(self, visitor: Visitor, seconds: float, now: float, session: Any = None) -> tuple[str, float]:
        """A secret for a browser that opens one conversation at a time, for `seconds`: (secret, when it ends)."""
        if self.sealed is not None:
            return EPHEMERAL + self.sealed.seal(visitor.key or "local", seconds, session), now + seconds
        self._ephemeral = {digest: row for digest, row in self._ephemeral.items() if row[1] > now}
        if len(self._ephemeral) >= 10_000:
            raise Denied("too_many_secrets", "too many ephemeral keys are valid: wait until some end", 429, 60.0)
        secret = EPHEMERAL + secrets.token_urlsafe(32)
        key = Key(visitor.key or "local", digest_of(secret), ("talk",), 1)
        self._ephemeral[key.sha256] = (key, now + seconds, session)
        return secret, now + seconds

    def session_of(self, secret: str | None, now: float) -> Any:
        """What an ephemeral secret was made for; None for others."""
        found = self._made(secret, now) if secret else None
        return found[1] if found else None

    @property
    def open(self) -> dict[Who, int]:
        """How many conversations each has here."""
        return dict(self._open)

    def _counted(self, visitor: Visitor) -> dict[Who, int]:
        """Whose conversations a visitor's are, and how many each may have. Those of an ephemeral key are its maker's
        too, whose limit, and not the one conversation of each, is the address's."""
        most, counted = visitor.limits.conversations, {}
        if visitor.ephemeral is not None:
            counted[("ephemeral", f"ephemeral key {visitor.ephemeral[:8]}")] = most
            maker = next((key for key in self.keys.values() if key.name == visitor.key), None)
            most = self.limits.conversations if maker is None or maker.conversations is None else maker.conversations
        if visitor.key is not None:
            counted[("key", f"key '{visitor.key}'")] = most
        return {**counted, ("address", f"address {visitor.address}"): most}

    def _made(self, secret: str, now: float) -> tuple[Key, Any] | None:
        """The ephemeral key of a secret and its session, while it is good."""
        digest = digest_of(secret)
        if self.sealed is not None and secret.startswith(EPHEMERAL):
            opened = self.sealed.open(secret.removeprefix(EPHEMERAL))
            return (Key(opened[0], digest, ("talk",), 1), opened[2]) if opened and opened[1] > 0 else None
        found = self._ephemeral.get(digest)
        return (found[0], found[2]) if found and found[1] > now else None

    def _key(self, secret: str | None, now: float) -> Key | None:
        if secret:
            digest = digest_of(secret)
            if made := self._made(secret, now):
                return made[0]
            if secret.startswith(EPHEMERAL) and self.keys:
                raise Denied("key_expired", "this ephemeral key is over: ask for a new one", 401)
            for known, key in self.keys.items():
                if hmac.compare_digest(known, digest):
                    return key
        if not self.keys:
            return None
        words = "this key is not known" if secret else "no key was given: send Authorization: Bearer KEY"
        raise Denied("invalid_api_key" if secret else "missing_api_key", words, 401)

    def allows(self, origin: str, local: bool) -> bool:
        """Whether pages of another origin may talk here; `local`: to a server that only this machine reaches."""
        return origin in self.origins or (local and is_this_machine(place_of(origin)[1]))

    def _check_origin(self, headers: Mapping[str, str], local: bool) -> None:
        """Pages of other sites may not use the microphone through a visitor's browser."""
        origin = headers.get("origin")
        if origin is None:
            if self.keys or local:
                return  # no browser
            raise Denied("origin_missing", "without keys this server talks to pages that say where they are from", 403)
        place = place_of(origin)[0]
        if not ((place and place == headers.get("host", "")) or self.allows(origin, local)):
            raise Denied("origin_not_allowed", f"pages of {origin} may not talk here: allow them with --origin", 403)


class Allowance:
    """So much at once, `most`, and so much a second, `rate`; times are in seconds."""

    def __init__(self, most: float, rate: float, now: float):
        self.most, self.rate = float(most), rate
        self._left, self._at = self.most, now

    def left(self, now: float) -> float:
        """What may be taken at that time; negative while more was spent than there was."""
        self._left = min(self.most, self._left + (now - self._at) * self.rate)
        self._at = now
        return self._left

    def spend(self, amount: float) -> None:
        """Take so much, there or not."""
        self._left -= amount

    def take(self, now: float) -> bool:
        """Take one; whether it was there."""
        there = self.left(now) >= 1
        self.spend(1)
        return there


def place_of(origin: str) -> tuple[str, str]:
    """An origin's "host:port" and its host; both empty for what is no address."""
    try:
        asked = urlsplit(origin)
        return asked.netloc, asked.hostname or ""
    except ValueError:
        return "", ""


def is_this_machine(host: str) -> bool:
    """Whether a host name or address means the machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def digest_of(secret: str) -> str:
    """SHA-256 of a secret, hexadecimal: what is kept of it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_of(headers: Mapping[str, str], query: Mapping[str, str], protocols: Iterable[str]) -> str | None:
    """The key that a request carries, wherever clients put it."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    if headers.get("x-api-key"):
        return headers["x-api-key"]
    for protocol in protocols:
        if protocol.startswith("openai-insecure-api-key."):
            return protocol.partition(".")[2]
    return query.get("api_key") or query.get("auth_id") or None


def read_keys(path: Path) -> dict[str, Key]:
    """Keys of a YAML file, `NAME: {sha256: …, scopes: [talk, rest], conversations: 2}`; a key without scopes opens talk
    and rest. Raises `RequestError` naming the line's key."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"{path}: no file of keys that can be read: {error}") from error
    if not isinstance(found, dict) or not found:
        raise RequestError(f"{path}: a mapping NAME: {{sha256: …}} with at least one key is expected")
    keys = {}
    for name, row in found.items():
        digest = row.get("sha256") if isinstance(row, dict) else None
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise RequestError(f"{path}: {name}: sha256 must be 64 hexadecimal digits: make one with 'talk --new-key'")
        unknown = set(row) - {"sha256", "scopes", "conversations"} or set(row.get("scopes", USUAL_SCOPES)) - set(SCOPES)
        if unknown:
            raise RequestError(f"{path}: {name}: '{sorted(unknown)[0]}' is unknown; scopes are {', '.join(SCOPES)}")
        keys[digest] = Key(str(name), digest, tuple(row.get("scopes", USUAL_SCOPES)), row.get("conversations"))
    return keys
