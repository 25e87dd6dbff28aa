"""The identity of a tokenizer's tokens: what stores, compact files and models compare."""

import hashlib
import json
from typing import Any

from vivavoce.errors import RequestError


def fingerprint(tokenizer: Any) -> str:
    """What tells tokenizers apart: their own `fingerprint`, else 16 hex digits of their weights and configuration.

    How many codebooks are in use is no part of it: the first levels of a residual quantizer are the same codes.
    """
    own = getattr(tokenizer, "fingerprint", None)
    if own is not None:
        return str(own() if callable(own) else own)
    if not hasattr(tokenizer, "state_dict"):
        raise RequestError(f"{type(tokenizer).__name__} has neither a fingerprint nor weights to make one of")
    from vivavoce.nn.weights import hash_tensors

    config = getattr(tokenizer, "config", None)
    options = config.options() if config is not None and hasattr(config, "options") else {}
    options.pop("use_codebooks", None)
    if getattr(tokenizer, "pieces", None) is not None:
        options["pieces"] = tokenizer.pieces
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    tensors = tokenizer.state_dict()
    if getattr(tokenizer, "entropy", None) is not None:  # models of the codes make no other codes
        tensors = {name: value for name, value in tensors.items() if not name.startswith("entropy.")}
    hash_tensors(digest, tensors)
    return digest.hexdigest()[:16]
