"""Heads: what a stream's levels are predicted with, from the hidden column before them.

Both kinds have two faces: `forward` scores given ids of whole columns (teacher forcing), `choose` fills one column,
level by level, through a function that picks ids from logits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.lm.depth import DepthTransformer

Choose = Callable[[int, Tensor], Tensor]


class Head(Protocol):
    """What the heads of one stream can do. `after`: the stream whose token of the same column comes first, or None."""

    after: str | None

    def __call__(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """hidden [..., D], codes [..., levels], prefix [...] -> for every level logits [..., vocabulary]."""
        ...

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None) -> Tensor:
        """hidden [B, D], prefix [B] -> ids [B, levels], picked by pick(level, logits [B, vocabulary]) -> [B]."""
        ...


class LinearHead(nn.ModuleList):
    """A matrix for every level; levels of a column are predicted independently of each other."""

    after: str | None = None

    def __init__(self, width: int, levels: Sequence[int], bias: bool = True):
        super().__init__(nn.Linear(width, size, bias=bias) for size in levels)

    def forward(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """As `Head` says; codes and prefix are not looked at."""
        return [head(hidden) for head in self]

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None) -> Tensor:
        """As `Head` says."""
        return torch.stack([pick(k, head(hidden)) for k, head in enumerate(self)], dim=1)


class DepthHead(DepthTransformer):
    """A depth transformer; `after` names the stream whose token of the same column is its prefix."""

    def __init__(self, *args: Any, after: str | None = None, **options: Any):
        super().__init__(*args, **options)
        self.after = after

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None) -> Tensor:
        """As `Head` says."""
        return self.generate(hidden, pick, prefix)


HEADS = ("linear", "depth")


def make_head(
    kind: str, width: int, stream: str, vocabularies: Mapping[str, Sequence[int]], options: Mapping[str, Any]
) -> LinearHead | DepthHead:
    """The head of a stream by kind; vocabularies: all token streams with the sizes of their levels."""
    where = f"heads.{stream}"
    if stream not in vocabularies:
        raise RecipeError(f"{where}: '{stream}' is no stream of tokens; there are {', '.join(vocabularies)}")
    levels, options = vocabularies[stream], dict(options)
    try:
        if kind == "linear":
            return LinearHead(width, levels, **options)
        if kind == "depth":
            after = options.pop("after", None)
            if after is not None and after not in vocabularies:
                raise RecipeError(f"{where}.after: '{after}' is no stream of tokens")
            prefix = vocabularies[after][0] if after else None
            return DepthHead(width, levels=levels, prefix=prefix, after=after, **options)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error
    raise RecipeError(f"{where}: kind '{kind}' is unknown; there are {', '.join(HEADS)}")
