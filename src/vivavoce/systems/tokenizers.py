"""Tokenizers by the same names and places as models: a model's own codec, or what `vivavoce.tokenizers` opens."""

from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import RequestError
from vivavoce.systems.checkpoint import EMBEDDED, load


def load_tokenizer(
    name: str | Path,
    codebooks: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> Any:
    """A trained tokenizer: "mini" or a model directory (the codec of its voice), a tokenizer directory, a hub id.

    Arguments and errors as `vivavoce.tokenizers.load_tokenizer`.
    """
    if str(name) in EMBEDDED or (Path(name) / "recipe.yaml").is_file():
        codec = getattr(load(name, device, dtype).system, "codec", None)
        if codec is None:
            raise RequestError(f"{name} has no codec: its tokens come from elsewhere")
        if codebooks is not None:
            codec.codebooks = codebooks
        return codec
    from vivavoce.tokenizers import load_tokenizer as open_tokenizer

    return open_tokenizer(name, codebooks, device, dtype, allow_pickle)
