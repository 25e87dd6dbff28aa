"""Heads: what a stream's levels are predicted with, from the hidden column before them.

Those of tokens have two faces: `forward` scores given ids of whole columns (teacher forcing), `choose` fills one
column, level by level, through a function that picks ids from logits. Those of frames give the parameters of a density.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.lm.depth import DepthTransformer
from vivavoce.lm.depth_decoder import DepthDecoder
from vivavoce.nn.chance import normal, uniform

Choose = Callable[[int, Tensor], Tensor]


class Head(Protocol):
    """What the heads of one stream can do. `after`: the stream whose token of the same column comes first, or None."""

    after: str | None

    def __call__(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """hidden [..., D], codes [..., levels], prefix [...] -> for every level logits [..., vocabulary]."""
        ...

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None, levels: int | None = None) -> Tensor:
        """hidden [B, D], prefix [B] -> ids [B, levels], picked by pick(level, logits [B, vocabulary]) -> [B].

        levels: the first ones alone (None: all).
        """
        ...


class LinearHead(nn.ModuleList):
    """A matrix for every level; levels of a column are predicted independently of each other."""

    after: str | None = None
    engine: Any = None  # what computes the matrices in `choose` in torch's place (see `vivavoce.lm.engine`)

    def __init__(self, width: int, levels: Sequence[int], bias: bool = True):
        super().__init__(nn.Linear(width, size, bias=bias) for size in levels)

    def forward(self, hidden: Tensor, codes: Tensor, prefix: Tensor | None = None) -> list[Tensor]:
        """As `Head` says; codes and prefix are not looked at."""
        return [head(hidden) for head in self]

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None, levels: int | None = None) -> Tensor:
        """As `Head` says."""
        if self.engine is not None:
            return torch.stack([pick(k, self.engine(k, hidden)) for k in range(len(self))[:levels]], dim=1)
        return torch.stack([pick(k, head(hidden)) for k, head in enumerate(list(self)[:levels])], dim=1)


class DepthHead(DepthTransformer):
    """A depth transformer; `after` names the stream whose token of the same column is its prefix.

    Its levels may be those of several streams, one behind another: a head {kind: depth, of: STREAM} says that the
    stream's levels follow those of STREAM in the same transformer (the second channel of a dialogue).
    """

    def __init__(self, *args: Any, after: str | None = None, **options: Any):
        super().__init__(*args, **options)
        self.after = after

    def choose(self, hidden: Tensor, pick: Choose, prefix: Tensor | None = None, levels: int | None = None) -> Tensor:
        """As `Head` says."""
        return self.generate(hidden, pick, prefix, levels)


class DensityHead(nn.ModuleList):
    """A density of a stream's frames: each of their numbers by itself, Laplace or normal.

    learned: whether the scale is predicted as well; else it is 1, which is regression: the negative log density is the
    absolute (Laplace) or half the squared (normal) error and a constant. pGSLM's durations and pitches (Kharitonov et
    al., arXiv:2109.03264, section 3.2) are such a Laplace.
    """

    after: str | None = None

    def __init__(self, width: int, size: int, family: str = "laplace", learned: bool = False):
        if family not in ("laplace", "normal"):
            raise RecipeError(f"family '{family}' is none of laplace, normal")
        super().__init__([nn.Linear(width, size * (1 + learned))])
        self.size, self.family, self.learned = size, family, learned
        nn.init.zeros_(self[0].bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, codes: Tensor | None = None, prefix: Tensor | None = None) -> list[Tensor]:
        """hidden [..., D] -> parameters [..., size], or [..., 2 * size] with the logarithms of learned scales."""
        return [head(hidden) for head in self]

    def spread(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale [..., size] float32; a learned scale lies between e^-7 and e^7."""
        parameters = parameters.float()
        if not self.learned:
            return parameters, torch.ones_like(parameters)
        centre, scale = parameters.chunk(2, dim=-1)
        return centre, scale.clamp(-7, 7).exp()

    def errors(self, parameters: Tensor, frames: Tensor) -> Tensor:
        """Negative log densities in nats without their constants, [..., size]; frames [..., size]."""
        centre, scale = self.spread(parameters)
        distance = (frames.float() - centre) / scale
        return (distance.abs() if self.family == "laplace" else 0.5 * distance.square()) + scale.log()

    def log_density(self, parameters: Tensor, frames: Tensor) -> Tensor:
        """Log density of frames [..., size] in nats: [...] float64."""
        constant = math.log(2) if self.family == "laplace" else 0.5 * math.log(2 * math.pi)
        return -(self.errors(parameters, frames).double() + constant).sum(-1)

    def draw(self, parameters: Tensor, temperature: float, seed: Tensor, counter: Tensor) -> Tensor:
        """Frames [B, size] of parameters [B, …]: the centre, and `temperature` times noise of the density's scale, by
        each row's seed and counter [B]."""
        centre, scale = self.spread(parameters)
        if temperature == 0:
            return centre
        index = torch.arange(self.size, device=centre.device)[None]
        where = seed[:, None].to(index.device), counter[:, None].to(index.device), index
        if self.family == "normal":
            return centre + temperature * scale * normal(*where)
        u = uniform(*where) - 0.5
        return centre - temperature * scale * u.sign() * torch.log1p(-2 * u.abs())


HEADS = ("linear", "depth", "depth_decoder")


def make_density(kind: str, width: int, stream: str, size: int, options: Mapping[str, Any]) -> DensityHead:
    """The head of a stream of frames of `size` numbers: `regression` {loss: l1 | l2}, or `density` {family: laplace |
    normal}, which predicts the scale too."""
    where, options = f"heads.{stream}", dict(options)
    families = {"l1": "laplace", "l2": "normal"}
    if kind == "regression":
        loss = options.pop("loss", "l1")
        if loss not in families:
            raise RecipeError(f"{where}.loss: '{loss}' is none of {', '.join(families)}")
        options["family"] = families[loss]
    elif kind != "density":
        raise RecipeError(f"{where}: kind '{kind}': a stream of frames is predicted by regression or density")
    try:
        return DensityHead(width, size, learned=kind == "density", **options)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def make_head(
    kind: str, width: int, stream: str, vocabularies: Mapping[str, Sequence[int]], options: Mapping[str, Any]
) -> LinearHead | DepthHead | DepthDecoder:
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
        if kind == "depth_decoder":
            return DepthDecoder(width, levels, **options)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error
    raise RecipeError(f"{where}: kind '{kind}' is unknown; there are {', '.join(HEADS)}")
