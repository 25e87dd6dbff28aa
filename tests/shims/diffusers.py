"""A stand-in for diffusers, for tests only: the four things that chatterbox-tts makes of it, by their definitions.

diffusers is large and takes ten seconds to import.
"""

import sys
from types import ModuleType

import torch.nn.functional as F
from torch import nn


class GELU(nn.Module):
    """A linear map, then GELU."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        return F.gelu(self.proj(x))


class Attention(nn.Module):
    """Softmax attention to oneself; the mask [B, T, T] is added to the scores."""

    def __init__(self, query_dim, heads, dim_head, dropout=0.0, bias=False, **ignored):
        super().__init__()
        inner, self.heads = heads * dim_head, heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(query_dim, inner, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim), nn.Dropout(dropout)])

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **ignored):
        q, k, v = (part(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for part in (self.to_q, self.to_k, self.to_v))  # fmt: skip
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        return self.to_out[0]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _module(name, **values):
    made = sys.modules[name] = ModuleType(name)
    vars(made).update(values)
    return made


_names = dict.fromkeys(("GEGLU", "AdaLayerNorm", "AdaLayerNormZero", "ApproximateGELU"))
models, utils = _module("diffusers.models"), _module("diffusers.utils")
_module("diffusers.models.attention", GELU=GELU, **_names)
_module("diffusers.models.attention_processor", Attention=Attention)
_module("diffusers.models.lora", LoRACompatibleLinear=nn.Linear)
_module("diffusers.models.activations", get_activation=lambda name: {"silu": nn.SiLU(), "mish": nn.Mish()}[name])
_module("diffusers.utils.torch_utils", maybe_allow_in_graph=lambda kind: kind)
