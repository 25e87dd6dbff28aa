"""Transformer layers over frames [B, T, D]: causal streams with a context, or whole signals; one configuration for all.

Names of parameters: `layers.N.attention.{qkv,out}`, `layers.N.{attention_norm,feedforward_norm}`,
`layers.N.feedforward.{inner,out}`, and with a memory `layers.N.{cross,cross_norm}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vivavoce.errors import RequestError
from vivavoce.nn.attention import Attention, CrossAttention
from vivavoce.nn.documents import Documents
from vivavoce.nn.feedforward import FeedForward, GatedFeedForward
from vivavoce.nn.norms import AdaptiveNorm, LayerScale, NormKind, make_norm
from vivavoce.nn.options import NEEDED, check_sizes, config_of
from vivavoce.nn.positions import make_positions
from vivavoce.nn.rope import Rope, Rotation
from vivavoce.nn.streaming import INFINITE, State, Streaming, gathered, lengths_of, zero_padding


@dataclass(frozen=True)
class TransformerConfig:
    """What a transformer is made of. The defaults are Llama's form; see `classic` for GPT's.

    context: frames that a query sees, itself included (None: unlimited). feedforward: inner width (default: 4 widths,
    gated: 8/3 rounded up to 64). qkv_bias, out_bias: of attention's two matrices (default: `bias`). positions: `rope`,
    `learned`, `sinusoidal` (both added before the first layer) or `none`. position_offset: number of the first row of
    the position table (OPT: 2). layer_scale: first value of the branches' factors (None: no factors). qk_norm: RMS
    norm of each head's queries and keys. memory: width of a memory for cross-attention (None: no such layers).
    condition: width of a vector that scales and shifts the norms (None: plain norms).
    """

    layers: int
    width: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    feedforward: int | None = None
    gated: bool = True
    activation: str = "silu"
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    bias: bool = False
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    qk_norm: bool = False
    causal: bool = True
    context: int | None = None
    positions: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_theta: float = 10000.0
    rope_interleaved: bool = False
    rope_fraction: float = 1.0
    rope_scaling: Mapping[str, Any] | None = None
    max_positions: int = 2048
    position_offset: int = 0
    layer_scale: float | None = None
    memory: int | None = None
    condition: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, NEEDED, ("kv_heads", "head_dim", "feedforward", "context", "memory", "condition"))

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str = "transformer") -> "TransformerConfig":
        """From the options of a recipe; a name that there is not, or a missing one, is a `RecipeError`."""
        return config_of(cls, options, where)

    @classmethod
    def classic(cls, layers: int, width: int, heads: int, **options: Any) -> "TransformerConfig":
        """GPT's form: layer norms, biases, plain GELU layers, learned positions."""
        form: dict[str, Any] = {
            "norm": "layer", "bias": True, "gated": False, "activation": "gelu", "positions": "learned"
        }
        return cls(layers, width, heads, **{**form, **options})

    @property
    def inner(self) -> int:
        """Inner width of the feed-forward layers."""
        if self.feedforward is not None:
            return self.feedforward
        return -(-self.width * 8 // 3 // 64) * 64 if self.gated else 4 * self.width


class TransformerLayer(nn.Module):
    """Attention, cross-attention where there is a memory, feed-forward: each a residual branch with a norm.

    The norm stands before the branch (`pre_norm`) or after the sum.
    """

    def __init__(self, config: TransformerConfig, rope: Rope | None = None):
        super().__init__()
        c = self.config = config
        self.attention = Attention(
            c.width,
            c.heads,
            c.kv_heads,
            c.head_dim,
            c.context,
            rope,
            bias=c.bias if c.qkv_bias is None else c.qkv_bias,
            out_bias=c.bias if c.out_bias is None else c.out_bias,
            qk_norm=c.norm_eps if c.qk_norm else None,
            causal=c.causal,
        )
        self.attention_norm = self._norm()
        if c.memory is not None:
            self.cross = CrossAttention(c.width, c.heads, c.memory, c.kv_heads, c.head_dim, c.bias)
            self.cross_norm = self._norm()
            self.cross_scale = self._scale()
        kind = GatedFeedForward if c.gated else FeedForward
        self.feedforward = kind(c.width, c.inner, c.activation, c.bias)
        self.feedforward_norm = self._norm()
        self.attention_scale, self.feedforward_scale = self._scale(), self._scale()

    def _norm(self) -> nn.Module:
        c = self.config
        if c.condition is not None:
            return AdaptiveNorm(c.norm, c.width, c.condition, c.norm_eps, gate=c.pre_norm)
        return make_norm(c.norm, c.width, c.norm_eps)

    def _scale(self) -> nn.Module:
        start = self.config.layer_scale
        return nn.Identity() if start is None else LayerScale(self.config.width, start)

    def remember(self, memory: Tensor | None, values: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the memory, or None; `values` as `CrossAttention.remember` has it."""
        return None if memory is None else self.cross.remember(memory, values)

    def whole(self, x, lengths, mask, rotation, prefix, documents, memory, memory_lengths, condition):
        """The whole signal; arguments as `Transformer.forward` has them, memory as `remember` gives it."""

        def attend(y: Tensor) -> Tensor:
            return self.attention(y, lengths, mask, rotation, prefix, documents)

        x = self._branch(x, attend, self.attention_norm, self.attention_scale, condition)
        return self._rest(x, memory, memory_lengths, condition)

    def step(self, x, state, lengths, rotation, consume, where, memory, memory_lengths, condition):
        """A chunk; arguments as `Transformer.step` has them, `state` is the attention's."""
        after = state

        def attend(y: Tensor) -> Tensor:
            nonlocal after
            y, after = self.attention.step(y, state, lengths, rotation, consume, where)
            return y

        x = self._branch(x, attend, self.attention_norm, self.attention_scale, condition)
        return self._rest(x, memory, memory_lengths, condition), after

    def _rest(self, x: Tensor, memory, memory_lengths, condition) -> Tensor:
        if memory is not None:
            x = self._branch(
                x, lambda y: self.cross(y, memory, memory_lengths), self.cross_norm, self.cross_scale, condition
            )
        return self._branch(x, self.feedforward, self.feedforward_norm, self.feedforward_scale, condition)

    def _branch(self, x: Tensor, branch, norm: nn.Module, scale: nn.Module, condition: Tensor | None) -> Tensor:
        gate = None
        if self.config.pre_norm:
            y = norm(x) if condition is None else None
            if condition is not None:
                y, gate = norm(x, condition)
            y = scale(branch(y))
        else:
            y = scale(branch(x))
        if self.training and self.config.dropout:
            y = F.dropout(y, self.config.dropout)
        if self.config.pre_norm:
            return x + (y if gate is None else y * gate)
        return norm(x + y) if condition is None else norm(x + y, condition)[0]


class Transformer(Streaming):
    """Layers of one configuration, without a last norm.

    A causal one streams: its state has a ring of keys and values for every layer and one cursor a row. One that is not
    causal gathers the signal and answers at its end.
    """

    consumes = True
    recompute = False  # while training, keep no activations inside the layers: the backward pass computes them again

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.rope = None
        if config.positions == "rope":
            head_dim = config.head_dim or config.width // config.heads
            self.rope = Rope(
                head_dim, config.rope_theta, config.rope_interleaved, config.rope_fraction, config.rope_scaling
            )
        self.positions = make_positions(config.positions, config.width, config.max_positions, config.position_offset)
        self.layers = nn.ModuleList(TransformerLayer(config, self.rope) for _ in range(config.layers))
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of width^-0.5; the branches' last matrices smaller with depth: any depth starts calm."""
        for name, parameter in self.named_parameters():
            if "norm" in name or "scale" in name or "positions" in name:
                continue
            if parameter.dim() < 2:
                nn.init.zeros_(parameter)
            else:
                std = 1 / parameter.shape[-1] ** 0.5
                std = std / (2 * self.config.layers) ** 0.5 if ".out." in name else std
                # Drawn in the order of rows, in which the parameter itself may not lie in memory.
                rows = nn.init.normal_(torch.empty_like(parameter, memory_format=torch.contiguous_format), std=std)
                parameter.data.copy_(rows)

    @property
    def blocks(self) -> list[TransformerLayer]:
        """The layers, by their type."""
        return cast(list[TransformerLayer], list(self.layers))

    @property
    def width(self):
        return self.config.width

    @property
    def lookahead(self):  # type: ignore[override]
        return 0 if self.config.causal else INFINITE

    @property
    def receptive_field(self):  # type: ignore[override]
        if not self.config.causal or self.config.context is None:
            return INFINITE
        return self.config.layers * (self.config.context - 1)

    # -- the whole signal --

    def forward(
        self, x, lengths=None, positions=None, mask=None, memory=None, memory_lengths=None, prefix=None, condition=None,
        documents=None, memory_values=None,
    ):
        """The whole signal x [B, T, D] -> [B, T, D].

        positions: [B or 1, T] int64, where they are not 0, 1, 2, …. mask: [B or 1, T, T] bool, the keys (last) that a
        query may see, besides the causal rule. memory: [B, M, D'] for cross-attention, of which `memory_lengths` [B]
        are valid; memory_values: another one of the same shape that values are made of, the memory then being for keys
        alone. prefix: keys and values of each layer that every query sees, a list of pairs [B, P, kv_heads, head_dim];
        positions then begin at P. condition: [B, C] or [B, T, C] for the norms. documents: lengths of the rows that
        stand one behind another in x [1, T, D], none of which sees another; their sum is T. Positions then begin anew
        with each.
        """
        if documents is not None:
            documents = self._documents(documents, x, lengths, mask, prefix, memory)
            positions = documents.positions(x.device) if positions is None else positions
        if lengths is not None:
            x = zero_padding(x, lengths_of(x, lengths))
        if positions is None:
            first = prefix[0][0].shape[1] if prefix is not None else 0
            positions = torch.arange(first, first + x.shape[1], device=x.device)[None]
        x, rotation = self._place(x, positions)
        self._check(memory, condition)
        again = self.recompute and self.training and torch.is_grad_enabled()
        for i, layer in enumerate(self.blocks):
            given = (x, lengths, mask, rotation, prefix[i] if prefix is not None else None, documents,
                     layer.remember(memory, memory_values), memory_lengths, condition)  # fmt: skip
            x = checkpoint(layer.whole, *given, use_reentrant=False) if again else layer.whole(*given)
        return x

    def _documents(self, sizes, x: Tensor, *others: object) -> Documents:
        """Rows one behind another, as attention goes through them."""
        if any(other is not None for other in others) or not self.config.causal or len(x) != 1:
            raise RequestError("documents stand one behind another in x [1, T, D] of a causal transformer, alone: "
                               "without lengths, mask, prefix or memory")  # fmt: skip
        documents = Documents(sizes, x.device)
        if documents.total != x.shape[1]:
            raise RequestError(f"documents of {documents.total} frames in a signal of {x.shape[1]}")
        return documents

    def _place(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Rotation | None]:
        """Add position vectors, or compute the layers' common rotation."""
        if self.positions is not None:
            x = x + self.positions(positions).to(x.dtype)
        return x, self.rope(positions) if self.rope is not None else None

    def _check(self, memory: Tensor | None, condition: Tensor | None) -> None:
        wanted = {"memory": (memory, self.config.memory), "condition": (condition, self.config.condition)}
        for name, (given, width) in wanted.items():
            if given is not None and width is None:
                raise RequestError(f"a {name} is given, but the configuration has none: set {name} to its width")
        if condition is None and self.config.condition is not None:
            raise RequestError(f"this transformer's norms take a condition of width {self.config.condition}: give one")

    # -- steps --

    def initial_state(self, batch, device=None, dtype=None, prefix=None):
        """State of rows that have heard nothing, or only a `prefix` (as `forward` takes it)."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        if not self.config.causal:
            return State(waiting=torch.zeros(batch, 0, self.width, **home), position=zero, emitted=zero)
        state = State(position=zero, emitted=zero)
        for i, layer in enumerate(self.blocks):
            state[f"layer_{i}"] = layer.attention.initial_state(batch, device, dtype, prefix[i] if prefix else None)
            state["position"] = state[f"layer_{i}"]["position"]
        return state

    def remember(self, memory: Tensor, lengths: Tensor | None = None) -> State:
        """What steps need of a memory [B, M, D']: its keys and values in every layer, rows like those of any state."""
        if self.config.memory is None:
            raise RequestError("a memory is given, but the configuration has none: set memory to its width")
        kept = State(lengths=lengths_of(memory, lengths))
        for i, layer in enumerate(self.blocks):
            kept[f"keys_{i}"], kept[f"values_{i}"] = layer.cross.remember(memory)
        return kept

    def step(self, x, state, lengths=None, positions=None, memory: State | None = None, condition=None, consume=False):
        """A chunk x [B, T, D] -> [B, T, D] and the next state.

        positions: [B, T], by default the cursor's. memory: as `remember` gives it. consume: the tensors of `state` may
        be overwritten, which saves copies of all rings; `state` must not be used again.
        """
        ragged = lengths is not None
        count = lengths_of(x, lengths)
        if not self.config.causal:
            waiting, total = gathered(state["waiting"], state["position"], x, count)
            return x[:, :0], State(waiting=waiting, position=total, emitted=torch.zeros_like(total))
        if ragged and x.shape[1] > 1:
            x = zero_padding(x, count)
        if positions is None:
            positions = state["position"][:, None] + torch.arange(x.shape[1], device=x.device)
        x, rotation = self._place(x, positions)
        after = State(position=state["position"] + count, emitted=count)
        where = self.blocks[0].attention.places(state["layer_0"], x.shape[1], lengths) if self.layers else None
        for i, layer in enumerate(self.blocks):
            name = f"layer_{i}"
            remembered = None if memory is None else (memory[f"keys_{i}"], memory[f"values_{i}"])
            x, after[name] = layer.step(
                x, state[name], lengths, rotation, consume, where,
                remembered, None if memory is None else memory["lengths"], condition,
            )
        return x, after

    def flush(self, state, rows=None):
        if self.config.causal:
            return self.nothing(state)
        lengths = state["position"] if rows is None else state["position"] * rows
        return self.forward(state["waiting"], lengths), State({**state, "emitted": lengths})
