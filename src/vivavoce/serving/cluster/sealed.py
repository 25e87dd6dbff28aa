"""Ephemeral keys that every replica can read: what they are for is in them, encrypted and signed with a shared
secret."""

import base64
import hashlib
import json
import time
import zlib
from typing import Any

from vivavoce.errors import need
from vivavoce.serving.access import Denied

MOST = 6000  # characters: a key travels in a header, and servers take lines of 8192 bytes


class SealedKeys:
    """Keys of the servers that share `secret`, which they alone may know."""

    def __init__(self, secret: str):
        fernet = need("cryptography.fernet", "serve", "a server of several processes")
        self._fernet = fernet.Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))
        self._wrong = fernet.InvalidToken

    def seal(self, key: str, seconds: float, session: Any) -> str:
        """A key made by `key`, for `seconds`, with what its sessions are to be. Raises `Denied` beyond what fits."""
        made = {"key": key, "until": time.time() + seconds, "session": session}
        sealed = self._fernet.encrypt(zlib.compress(json.dumps(made).encode(), 9)).decode().rstrip("=")
        if len(sealed) > MOST:
            words = "this session is too large for an ephemeral key: send the longer part by session.update"
            raise Denied("session_too_large", words, 413)
        return sealed

    def open(self, sealed: str) -> tuple[str, float, Any] | None:
        """(name of the key that has made it, seconds that are left, session); None for what was not sealed here."""
        try:
            text = self._fernet.decrypt((sealed + "=" * (-len(sealed) % 4)).encode())
        except (self._wrong, ValueError):
            return None
        made = json.loads(zlib.decompress(text))
        return made["key"], made["until"] - time.time(), made["session"]
