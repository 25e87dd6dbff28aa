"""Small causal transformers over the codes of a codec, for codes in fewer bits: how likely each code of a frame is.

EnCodec's (arXiv:2210.13438, section 3.5; encodec/model.py, `LMModel`, and modules/transformer.py, whose weights load by
their names): a frame's levels are predicted side by side from the frames before it. LMCodec (arXiv:2303.12984, sections
2.2 and 2.3): one such model for the coarse levels that are sent, each level hearing those below it, and a second one
that predicts the fine levels, which are not sent, from the coarse ones.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.weights import hash_tensors
from vivavoce.schema.parts import configured

Past = list[tuple[Tensor, Tensor]]  # keys and values [1, frames, width] of each layer


@dataclass(frozen=True)
class CodeLMConfig:
    """Sizes; the defaults are EnCodec's at 75 Hz. context: frames before its own that a frame sees (3.5 s there).
    within: each level of a frame hears those below it."""

    width: int = 200
    heads: int = 8
    layers: int = 5
    hidden: int = 800
    context: int = 262
    within: bool = False

    def __post_init__(self):
        sizes = (self.width, self.heads, self.layers, self.hidden, self.context)
        if min(sizes) < 1 or self.width % 2 or self.width % self.heads:
            told = f"width, heads, layers, hidden, context {sizes}"
            raise RecipeError(f"entropy: {told}: from 1, an even width that all heads share")


class PastLayer(nn.Module):
    """A transformer layer, norms behind its parts, of torch's parameters' names."""

    def __init__(self, config: CodeLMConfig):
        super().__init__()
        width = config.width
        self.self_attn = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.context = config.context

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x [B, T, D] behind the inputs `past` [B, P, D] of frames before: [B, T, D], computed as encodec does."""
        joined = torch.cat([past, x], dim=1)
        places = torch.arange(joined.shape[1], device=x.device)
        ago = places[past.shape[1] :, None] - places
        hidden = (ago < 0) | (ago > self.context)
        y = self.self_attn(x, joined, joined, attn_mask=hidden, need_weights=False)[0]
        return self._after(x, y)

    def step(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One frame x [1, 1, D] behind keys and values: the same, and these with its own."""
        attention = self.self_attn
        query, key, value = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        keys, values = (torch.cat([old, new], dim=1)[:, -self.context - 1 :] for old, new in zip(past, (key, value)))
        split = (query, keys, values)
        q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in split)
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[-1])
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self._after(x, attention.out_proj(y)), (keys, values)

    def _after(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.norm1(x + y)
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class CodeLM(nn.Module):
    """Codes [B, K, T] of codebooks of `sizes` -> logits of the levels from `given` on; those below it are known."""

    def __init__(self, sizes: Sequence[int], config: CodeLMConfig, given: int = 0):
        super().__init__()
        width = config.width
        self.sizes, self.config, self.given = tuple(sizes), config, given
        self.emb = nn.ModuleList(nn.Embedding(size + 1, width) for size in sizes)
        self.transformer = nn.ModuleDict(
            {"norm_in": nn.LayerNorm(width), "layers": nn.ModuleList(PastLayer(config) for _ in range(config.layers))}
        )
        self.linears = nn.ModuleList(nn.Linear(width, size) for size in sizes[given:])
        heard = len(sizes) - 1 if config.within else given
        self.below = nn.ModuleList(nn.Embedding(size, width) for size in sizes[:heard])
        turned = len(sizes) - given if config.within else 0
        self.turns = nn.ModuleList(nn.Linear(width, width) for _ in range(turned))

    @property
    def layers(self) -> list[PastLayer]:
        """The transformer's."""
        return cast(list[PastLayer], list(cast(nn.ModuleList, self.transformer["layers"])))

    def hidden(self, before: Tensor, past: list[Tensor] | None = None, offset: int = 0) -> tuple[Tensor, list[Tensor]]:
        """before [B, K, T]: 1 + the code of the frame before each, 0 where there is none; K may be fewer than all.

        Returns frames [B, T, width] and the past for those that follow; `offset`: frames that went before. The same
        operations as the package's, so that in float32 the bits are the same.
        """
        x = sum(self.emb[level](row) for level, row in enumerate(before.unbind(1)))
        if past is None:
            past = [torch.zeros_like(x[:, :1]) for _ in self.layers]
        x = self.transformer["norm_in"](x) + self._places(offset, x.shape[1], x)
        after = []
        for layer, old in zip(self.layers, past):
            after.append(torch.cat([old, x], dim=1)[:, -self.config.context :])
            x = layer(x, old)
        return x, after

    def begin(self) -> Past:
        """The past of a first frame, of `step`: a frame of zeros, as the package has it."""
        biases = [layer.self_attn.in_proj_bias.view(3, 1, 1, self.config.width) for layer in self.layers]
        return [(keys, values) for _, keys, values in biases]

    def step(self, before: Tensor, past: Past, offset: int) -> tuple[Tensor, Past]:
        """As `hidden`, of one frame [1, K, 1] of one signal, by keys and values of the past."""
        x = sum(self.emb[level](row) for level, row in enumerate(before.unbind(1)))
        x = self.transformer["norm_in"](x) + self._places(offset, 1, x)
        after: Past = []
        for layer, old in zip(self.layers, past, strict=True):
            x, new = layer.step(x, old)
            after.append(new)
        return x, after

    def _places(self, offset: int, count: int, x: Tensor) -> Tensor:
        """Cosines and then sines of `count` places from `offset` on, in the dtype of x."""
        half = self.config.width // 2
        places = (torch.arange(count, device=x.device).view(1, -1, 1) + offset).to(torch.int64)
        rates = torch.arange(half, device=x.device).view(1, 1, -1) / (half - 1)
        phase = places / (10000**rates).to(x.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=-1)

    def logits(self, hidden: Tensor, level: int, lower: Sequence[Tensor]) -> Tensor:
        """Of a level from frames [B, T, width] and the codes [B, T] of the levels below it: [B, T, size]."""
        heard = [self.below[number](codes) for number, codes in enumerate(lower) if number < len(self.below)]
        x = hidden + sum(heard) if heard else hidden
        if len(self.turns):
            x = x + F.gelu(self.turns[level - self.given](x))
        return self.linears[level - self.given](x)

    def forward(self, codes: Tensor) -> list[Tensor]:
        """Codes [B, K, T] -> logits [B, T, size] of each level from `given` on, of what stands there."""
        before = F.pad(codes[..., :-1] + 1, (1, 0))
        hidden, _ = self.hidden(before)
        rows = list(codes.unbind(1))
        return [self.logits(hidden, level, rows[:level]) for level in range(self.given, len(rows))]

    def nats(self, codes: Tensor) -> Tensor:
        """Mean nats of each level from `given` on, of codes [B, K, T]."""
        told = zip(self(codes), codes.unbind(1)[self.given :], strict=True)
        return torch.stack([F.cross_entropy(logits.flatten(0, 1).float(), row.flatten()) for logits, row in told])


class CodeModels(nn.Module):
    """The models of a codec's codes: `sent` of the levels that a file has, and `fine` (None) of those that it lacks.

    coarse: how many levels are sent; None: all of them. Other options: `CodeLMConfig`'s.
    """

    def __init__(self, sizes: Sequence[int], coarse: int | None = None, **options: Any):
        super().__init__()
        if coarse is not None and not 1 <= coarse < len(sizes):
            raise RecipeError(f"entropy.coarse is {coarse}: 1 to {len(sizes) - 1} of {len(sizes)} levels are sent")
        self.config = configured("entropy", CodeLMConfig, options)
        self.coarse = coarse
        self.sent = CodeLM(sizes[:coarse], self.config)
        self.fine = None if coarse is None else CodeLM(sizes, self.config, given=coarse)

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data."""
        plain, usual = asdict(self.config), asdict(CodeLMConfig())
        found = {name: value for name, value in plain.items() if value != usual[name]}
        return found if self.coarse is None else {"coarse": self.coarse, **found}

    def digest(self) -> str:
        """16 hex digits of the weights that code what is sent."""
        digest = hashlib.sha256()
        hash_tensors(digest, self.sent.state_dict())
        return digest.hexdigest()[:16]


def code_models(codec: Any, options: Mapping[str, Any]) -> CodeModels:
    """Untrained models of all levels of a codec of one rate. Raises `RecipeError`."""
    if getattr(codec, "ratios", None):
        raise RecipeError("entropy: the levels of this codec differ in rate: there is no frame to predict")
    return CodeModels(codec.quantizer.codebook_sizes, **options)
