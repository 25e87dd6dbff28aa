"""Attention over frames [B, T, D] with a ring of keys and values in the state, and a cursor for every row.

A row's cursor counts the frames that it has heard. A query sees the last `context` frames, itself included, so that a
stream of any length costs the same memory and time per frame. Without a context the store grows, and slot p is frame p.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.linear import linear
from vivavoce.nn.norms import RMSNorm
from vivavoce.nn.ring import SPARE, Places, fits, places
from vivavoce.nn.rope import Rope, Rotation
from vivavoce.nn.streaming import INFINITE, State, Streaming, common, gathered, lengths_of, valid, zero_padding

BLOCK = 256  # queries that are computed together when a signal is longer than the context


class Attention(Streaming):
    """Multi-head self-attention; causal with a `context` (None: unlimited), or over the whole signal.

    kv_heads: fewer keys and values than queries (grouped queries, arXiv:2305.13245). rope: rotation of queries and keys
    (None: none). qk_norm: epsilon of an RMS norm over each head's queries and keys, before RoPE (None: none).
    `qkv.weight` holds the rows of queries, keys, values, in this order. Scores and softmax are computed in float32 or
    by a kernel that accumulates so.

    A module that is not causal answers when the signal ends (`lookahead` is infinite).
    """

    consumes = True

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context: int | None = None,
        rope: Rope | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        qk_norm: float | None = None,
        causal: bool = True,
    ):
        super().__init__()
        self._width, self.heads, self.kv_heads = width, heads, kv_heads or heads
        if head_dim is None and width % heads:
            raise RequestError(f"width {width} is no multiple of {heads} heads; give head_dim")
        if self.heads % self.kv_heads:
            raise RequestError(f"{heads} heads cannot share {self.kv_heads} heads of keys and values")
        if context is not None and context < 1:
            raise RequestError(f"context {context}: a frame sees itself at least, give 1 or more (None: unlimited)")
        if context is not None and not causal:
            raise RequestError("a context limits what a causal module sees; leave it out where causal is false")
        self.head_dim = head_dim or width // heads
        self.context, self.causal = context, causal
        self.rope = rope
        self.qkv = linear(width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=bias if out_bias is None else out_bias)
        self.query_norm = RMSNorm(self.head_dim, qk_norm) if qk_norm is not None else None
        self.key_norm = RMSNorm(self.head_dim, qk_norm) if qk_norm is not None else None

    @property
    def width(self):
        return self._width

    @property
    def lookahead(self):  # type: ignore[override]
        return 0 if self.causal else INFINITE

    @property
    def receptive_field(self):  # type: ignore[override]
        return self.context - 1 if self.causal and self.context is not None else INFINITE

    # -- the whole signal --

    def forward(self, x, lengths=None, mask=None, rotation=None, prefix=None, documents=None):
        """The whole signal x [B, T, D] -> [B, T, D], with its gradient.

        mask: [B or 1, T, T] bool, which keys (last) a query may see, besides the causal rule (documents, blocks).
        rotation: of the frames' positions, where these are not 0, 1, 2, … prefix: keys and values [B, P, kv_heads,
        head_dim] that every query sees, standing before the signal (so that its positions begin at P). documents:
        `Documents`, rows that x [1, T, D] holds one behind another, each of which sees itself alone.
        """
        if lengths is not None:
            x = zero_padding(x, lengths)
        before = self._before(prefix)
        q, k, v = self.project(x, self._rotation(x, before, rotation))
        if documents is not None:
            return self.merge(documents.attend(q, k, v, self._causal))
        keys_valid = None if self.causal or lengths is None else valid(lengths, x.shape[1])
        if prefix is not None:
            return self._with_prefix(q, k, v, mask, keys_valid, prefix)
        if mask is None and keys_valid is None and (not self.causal or self._sees_all(x.shape[1])):
            return self.merge(attend(q, k, v, causal=self.causal))
        if mask is None and self.causal:
            return self.merge(self._windowed(q, k, v))
        seen = self._rule(x.shape[1], x.device)
        if keys_valid is not None:
            seen = join_masks(seen, keys_valid[:, None] | torch.eye(x.shape[1], dtype=torch.bool, device=x.device))
        return self.merge(attend(q, k, v, join_masks(seen, mask)))

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention over whole rows, with the window where there is one."""
        return attend(q, k, v, causal=True) if self._sees_all(q.shape[1]) else self._windowed(q, k, v)

    def _before(self, prefix: tuple[Tensor, Tensor] | None) -> int:
        """Frames of a prefix."""
        if prefix is not None and self.context is not None:
            raise RequestError(f"a prefix would leave the context of {self.context} frames: such attention takes none")
        return 0 if prefix is None else prefix[0].shape[1]

    def _sees_all(self, size: int) -> bool:
        return self.context is None or size <= self.context

    def _rule(self, size: int, device: torch.device, before: int = 0) -> Tensor | None:
        """The causal rule with its window as a mask [1, size, before + size]; None where everything is seen."""
        if not self.causal:
            return None
        at = torch.arange(before + size, device=device)
        distance = at[before:, None] - at[None]
        seen = distance >= 0
        if self.context is not None:
            seen = seen & (distance < self.context)
        return seen[None]

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention with a window, in blocks of queries that see only the keys they can reach."""
        assert self.context is not None
        pieces, size = [], q.shape[1]
        block = max(BLOCK, self.context)
        for start in range(0, size, block):
            end = min(start + block, size)
            first = max(0, start - self.context + 1)
            seen = self._rule(end - start, q.device, start - first)
            pieces.append(attend(q[:, start:end], k[:, first:end], v[:, first:end], seen))
        return torch.cat(pieces, dim=1)

    def _with_prefix(self, q, k, v, mask, keys_valid, prefix) -> Tensor:
        before, size = prefix[0].shape[1], q.shape[1]
        seen = self._rule(size, q.device)
        if keys_valid is not None:
            seen = join_masks(seen, keys_valid[:, None].expand(-1, size, -1))
        seen = join_masks(seen, mask)
        if seen is None:
            seen = torch.ones(1, size, size, dtype=torch.bool, device=q.device)
        seen = torch.cat([seen.new_ones(*seen.shape[:2], before), seen], dim=2)
        k, v = (torch.cat([p.to(x.dtype), x], dim=1) for p, x in zip(prefix, (k, v)))
        return self.merge(attend(q, k, v, seen))

    # -- steps --

    def initial_state(self, batch, device=None, dtype=None, prefix=None):
        """State of rows that have heard nothing, or only a `prefix` (as `forward` takes it)."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        if not self.causal:
            return State(waiting=torch.zeros(batch, 0, self._width, **home), position=zero, emitted=zero)
        slots = self.context + SPARE if self.context else self._before(prefix)
        store = torch.zeros(batch, slots, self.kv_heads, self.head_dim, **home)
        state = State(keys=store, values=store.clone(), position=zero + self._before(prefix), emitted=zero)
        if prefix is not None:
            state["keys"], state["values"] = (store + part.to(**home) for part in prefix)
        return state

    def step(self, x, state, lengths=None, rotation=None, consume=False, where=None):
        """Advance by x [B, T, D]. rotation: as in `forward`; by default that of the cursor.

        consume: the tensors of `state` may be overwritten, which saves a copy of the ring; it must not be used again.
        where: as `places` gives it, which layers of one cursor share.
        """
        count = lengths_of(x, lengths)
        if not self.causal:
            return self._gather(x, state, count)
        if lengths is not None and x.shape[1] > 1:
            x = zero_padding(x, count)
        position = state["position"]
        if rotation is None and self.rope is not None:
            rotation = self.rope(position[:, None] + torch.arange(x.shape[1], device=x.device))
        where = where or self.places(state, x.shape[1], lengths)
        q, k, v = self.project(x, rotation)
        after = State(position=position + count, emitted=count)
        if where is None:
            y = self._many(q, k, v, grown(state, self._capacity(state, x.shape[1])), after, count)
        else:
            state = grown(state, where.bias.shape[2])
            after["keys"] = where.write(state["keys"], k, consume)
            after["values"] = where.write(state["values"], v, consume)
            y = attend(q, after["keys"], after["values"], where.bias)
        return self.merge(y), after

    def places(self, state: State, size: int, lengths: Tensor | None) -> Places | None:
        """Where a step of `size` frames is written and what it sees there, for all layers of one cursor.

        None where so much is new that it is rather seen beside the ring: longer steps, and first ones.
        """
        position, capacity = state["position"], self._capacity(state, size)
        if position.numel() == 0 or (size > 1 and common(position) == 0) or not fits(size, capacity, self.context):
            return None
        return places(position, size, capacity, self.context, lengths)

    def _capacity(self, state: State, size: int) -> int:
        """Slots of the store after a step of `size` frames. One that grows doubles, so that growing is rare."""
        slots, position = state["keys"].shape[1], state["position"]
        if self.context is not None or position.numel() == 0:
            return slots
        needed = int(position.max()) + size
        return slots if needed <= slots else max(needed, 2 * slots, 16)

    def _many(self, q, k, v, state, after, lengths) -> Tensor:
        """Any chunk: look at the ring and the chunk side by side, then write what stays reachable."""
        keys, values, position = state["keys"], state["values"], state["position"]
        capacity, size = keys.shape[1], q.shape[1]
        fresh = common(position) == 0 if position.numel() else True
        new = torch.arange(size, device=q.device)
        if fresh:
            y = self._windowed(q, k, v) if not self._sees_all(size) else attend(q, k, v, causal=True)
        else:
            slots = torch.arange(capacity, device=q.device)[None]
            # The newest frame before the cursor that stands in the slot; negative: the slot is empty.
            held = position[:, None] - 1 - (position[:, None] - 1 - slots) % capacity
            here = position[:, None] + new
            distance = here[:, :, None] - torch.cat([held, here], dim=1)[:, None]
            seen = (distance >= 0) & torch.cat([held >= 0, torch.ones_like(here, dtype=torch.bool)], dim=1)[:, None]
            if self.context is not None:
                seen = seen & (distance < self.context)
            y = attend(q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1), seen)
        # Write the last `capacity` valid frames of the chunk; all others go to a slot that is cut off.
        stays = (new[None] < lengths[:, None]) & (new[None] >= lengths[:, None] - capacity)
        slot = torch.where(stays, (position[:, None] + new) % max(capacity, 1), capacity)
        rows = torch.arange(q.shape[0], device=q.device)[:, None]
        for name, fresh_values in (("keys", k), ("values", v)):
            ring = state[name]
            room = torch.cat([ring, ring.new_zeros(ring.shape[0], 1, *ring.shape[2:])], dim=1)
            after[name] = room.index_put_((rows, slot), fresh_values.to(ring.dtype))[:, :capacity]
        return y

    def _gather(self, x: Tensor, state: State, lengths: Tensor) -> tuple[Tensor, State]:
        """Keep the signal until its end."""
        waiting, total = gathered(state["waiting"], state["position"], x, lengths)
        return x[:, :0], State(waiting=waiting, position=total, emitted=torch.zeros_like(total))

    def flush(self, state, rows=None):
        if self.causal:
            return self.nothing(state)
        lengths = state["position"] if rows is None else state["position"] * rows
        y = self.forward(state["waiting"], lengths)
        return y, State({**state, "emitted": lengths})

    # -- the parts of both --

    def _rotation(self, x: Tensor, before: int, rotation: Rotation | None) -> Rotation | None:
        if rotation is None and self.rope is not None:
            return self.rope(torch.arange(before, before + x.shape[1], device=x.device)[None])
        return rotation

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, heads, head_dim], keys and values [B, T, kv_heads, head_dim], normed and rotated."""
        joint = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        qk, v = joint.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat([self.query_norm(q), self.key_norm(k)], dim=2)
        if rotation is not None and self.rope is not None:
            qk = self.rope.rotate(qk, rotation)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """[B, T, heads, head_dim] -> [B, T, D] through the output projection."""
        return self.out(heads.flatten(2))

    def extra_repr(self):
        return f"heads={self.heads}, kv_heads={self.kv_heads}, context={self.context}, causal={self.causal}"


class CrossAttention(nn.Module):
    """Queries from frames [B, T, D] look at a memory [B, M, D'] of another length: encoder-decoder attention."""

    def __init__(
        self,
        width: int,
        heads: int,
        memory: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or width // heads
        self.query = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.kv = linear(memory or width, 2 * self.kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(heads * self.head_dim, width, bias=bias if out_bias is None else out_bias)

    def remember(self, memory: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, M, kv_heads, head_dim] of a memory: computed once for a whole generation.

        values: another memory [B, M, D'] that the values are made of (TASTE, arXiv:2504.07053)."""
        k, v = self.kv(memory).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=2)
        if values is not None:
            v = self.kv(values).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=2)[1]
        return k, v

    def forward(self, x: Tensor, remembered: tuple[Tensor, Tensor], lengths: Tensor | None = None) -> Tensor:
        """x [B, T, D], `remember`ed memory, of which `lengths` [B] are valid (None: all) -> [B, T, D].

        A row without a memory (length 0) gets the output projection of zero.
        """
        k, v = remembered
        q = self.query(x).unflatten(-1, (self.heads, self.head_dim))
        if lengths is None:
            return self.out(attend(q, k, v).flatten(2))
        seen = valid(lengths.to(x.device), k.shape[1])
        v = zero_padding(v, lengths.to(x.device))
        first = torch.arange(k.shape[1], device=x.device) == 0  # so that an empty row's softmax is defined
        return self.out(attend(q, zero_padding(k, lengths.to(x.device)), v, (seen | first)[:, None]).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v for q [B, T, H, d], k and v [B, S, H', d].

    mask [B or 1, T or 1, S]: bool, or added to the scores.
    """
    if q.shape[1] == 0 or k.shape[1] == 0:
        return torch.zeros_like(q)
    k, v = k.to(q.dtype), v.to(q.dtype)
    if mask is not None:
        mask = mask[:, None] if mask.dtype == torch.bool else mask[:, None].to(q.dtype)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=bool(causal and q.shape[1] > 1),
        scale=1 / math.sqrt(q.shape[-1]),
        enable_gqa=bool(k.shape[2] != q.shape[2]),
    )
    return y.transpose(1, 2)


def join_masks(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Both rules must allow it; None allows everything."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def document_mask(documents: Tensor) -> Tensor:
    """Documents in one row, [B, T] numbers (-1: padding) -> bool [B, T, T]: whether a query (second axis) may see a key
    (last axis) as far as documents go; the causal rule comes on top. Padding sees itself alone, so that no row of a
    softmax is empty."""
    same = documents[:, :, None] == documents[:, None, :]
    alone = torch.eye(documents.shape[1], dtype=torch.bool, device=documents.device)
    return same & (documents >= 0)[:, :, None] | alone


def grown(state: State, slots: int) -> State:
    """A state whose store has `slots` slots; new ones are zero."""
    more = slots - state["keys"].shape[1]
    if more <= 0:
        return state

    def pad(store: Tensor) -> Any:
        return torch.cat([store, store.new_zeros(store.shape[0], more, *store.shape[2:])], dim=1)

    return State({**state, "keys": pad(state["keys"]), "values": pad(state["values"])})
