"""How a given stream of frames enters a decoder: as columns of the grid, a memory, a prefix, or a condition.

  grid       frames become columns, or are added to columns that are there
  memory     every layer looks at them by cross-attention
  prefix     every layer gets keys and values of its own from them, standing before the first column
  condition  one vector scales and shifts the norms of every layer
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.lm.adapters import make_adapter
from vivavoce.nn.streaming import join_rows, lengths_of, zero_padding
from vivavoce.nn.transformer import TransformerConfig

Enters = Literal["grid", "memory", "prefix", "condition"]
Pair = tuple[Tensor, Tensor]


@dataclass
class Entered:
    """What a decoder is given: columns name -> [B, T, D]; the rest as `Transformer.forward` takes it."""

    columns: dict[str, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None
    memory_lengths: Tensor | None = None
    prefix: list[Pair] | None = None
    condition: Tensor | None = None

    @property
    def context(self) -> dict[str, Any]:
        """Keywords for `Transformer.forward`."""
        return {
            "memory": self.memory, "memory_lengths": self.memory_lengths,
            "prefix": self.prefix, "condition": self.condition,
        }  # fmt: skip


class KeyValueProjection(nn.Module):
    """Frames [B, P, D] -> keys and values of every layer, [B, P, kv_heads, head_dim] each.

    With learned frames in place of an encoder's it is prefix tuning (Li & Liang, arXiv:2101.00190).
    """

    def __init__(self, inputs: int, config: TransformerConfig):
        super().__init__()
        self.layers, self.heads = config.layers, config.kv_heads or config.heads
        self.head_dim = config.head_dim or config.width // config.heads
        self.project = nn.Linear(inputs, config.layers * 2 * self.heads * self.head_dim)

    def forward(self, x: Tensor) -> list[Pair]:
        """A pair for each layer."""
        joint = self.project(x).view(*x.shape[:2], self.layers, 2, self.heads, self.head_dim)
        return [(joint[:, :, i, 0], joint[:, :, i, 1]) for i in range(self.layers)]


class Inputs(nn.Module):
    """The given streams of a stage. parts: stream -> {"width", "enters", "adapter": {"kind", ...}}.

    Memories of several streams stand one behind the other; conditions are added. A prefix has one length for all rows.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], config: TransformerConfig):
        super().__init__()
        self.enters: dict[str, Enters] = {}
        self.condition = config.condition
        self.adapters, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for name, part in parts.items():
            enters = part.get("enters", "grid")
            if enters not in ("grid", "memory", "prefix", "condition"):
                raise RecipeError(f"inputs.{name}.enters '{enters}': there are grid, memory, prefix, condition")
            wanted = {"memory": config.memory, "condition": config.condition}
            if enters in wanted and wanted[enters] is None:
                raise RecipeError(f"inputs.{name} enters as {enters}: set backbone.{enters} to its width")
            width = wanted.get(enters) or config.width
            adapter = dict(part.get("adapter") or {"kind": "linear"})
            self.enters[name] = enters
            self.adapters[name] = make_adapter(
                adapter.pop("kind", "linear"), part["width"], width, adapter, f"inputs.{name}.adapter"
            )
            if enters == "prefix":
                self.projections[name] = KeyValueProjection(width, config)

    def forward(self, values: Mapping[str, Tensor], lengths: Mapping[str, Tensor] | None = None) -> Entered:
        """values: stream -> frames [B, T, width], or [B, width] of a condition; lengths: stream -> [B].

        A stream that `values` leaves out does not enter (dropped inputs, unconditional views); conditions are then 0.
        """
        lengths, entered = lengths or {}, Entered()
        memories: list[Pair] = []
        for name, value in values.items():
            if name not in self.enters:
                raise RequestError(f"'{name}' is no input of this stage; there are {', '.join(self.enters)}")
            enters, frames = self.enters[name], value[:, None] if value.dim() == 2 else value
            size = lengths_of(frames, lengths.get(name))
            x = self.adapters[name](frames, size)
            size = self.adapters[name].frames(size)  # type: ignore[operator]
            if enters == "grid":
                entered.columns[name] = zero_padding(x, size)
            elif enters == "memory":
                memories.append((x, size))
            elif enters == "condition":
                mean = zero_padding(x, size).sum(1) / size.clamp(min=1)[:, None].to(x.dtype)
                entered.condition = mean if entered.condition is None else entered.condition + mean
            else:
                if bool((size != size[0]).any()):
                    raise RequestError(f"input '{name}': a prefix has one length, these are {size.tolist()}")
                pairs = self.projections[name](x)
                joined = zip(entered.prefix, pairs) if entered.prefix else ((None, pair) for pair in pairs)
                entered.prefix = [behind(old, new) for old, new in joined]
        if entered.condition is None and self.condition is not None:
            rows = next((value.shape[0] for value in values.values()), 1)
            entered.condition = torch.zeros(rows, self.condition, device=next(self.parameters()).device)
        if memories:
            entered.memory, entered.memory_lengths = join_rows(memories)
        return entered


def behind(old: Pair | None, new: Pair) -> Pair:
    """Keys and values of two prefixes, one after the other."""
    return new if old is None else (torch.cat([old[0], new[0]], dim=1), torch.cat([old[1], new[1]], dim=1))
