"""Attention: equal to its formula written out; streams, rings, prefixes and masks agree with whole signals."""

import os
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import RequestError
from vivavoce.nn.attention import Attention, CrossAttention
from vivavoce.nn.rope import Rope

EXAMPLES = 60 if os.environ.get("VIVAVOCE_LONG") == "1" else 12


def plain(module: Attention, x: torch.Tensor) -> torch.Tensor:
    """One row [T, D] by the textbook: query by query, head by head, in float64."""
    joint = module.qkv(x).double().view(len(x), -1, module.head_dim)
    q, k, v = joint.split([module.heads, module.kv_heads, module.kv_heads], dim=1)
    if module.query_norm is not None:
        q, k = (t / (t.pow(2).mean(-1, keepdim=True) + module.query_norm.eps).sqrt() for t in (q, k))
    if module.rope is not None:
        q, k = (torch.stack([turn(module.rope, row, p) for p, row in enumerate(t)]) for t in (q, k))
    out = torch.zeros(len(x), module.heads, module.head_dim, dtype=torch.float64)
    for t in range(len(x)):
        first = 0 if module.context is None else max(0, t - module.context + 1)
        last = t + 1 if module.causal else len(x)
        for h in range(module.heads):
            shared = h // (module.heads // module.kv_heads)
            scores = k[first:last, shared] @ q[t, h] / module.head_dim**0.5
            out[t, h] = scores.softmax(0) @ v[first:last, shared]
    return module.out(out.flatten(1).float())


def turn(rope: Rope, heads: torch.Tensor, position: int) -> torch.Tensor:
    """Pairs of channels as complex numbers times e^(i angle)."""
    size = rope.turned
    angles = position * 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    part = heads[:, :size]
    pairs = torch.complex(part[:, 0::2], part[:, 1::2]) if rope.interleaved else torch.complex(*part.chunk(2, 1))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    joined = [turned.real, turned.imag]
    done = torch.stack(joined, -1).flatten(1) if rope.interleaved else torch.cat(joined, 1)
    return torch.cat([done, heads[:, size:]], 1)


FORMS = {
    "plain": {},
    "window": {"context": 5},
    "grouped": {"kv_heads": 1, "context": 3},
    "rope by halves": {"rope": Rope(8), "kv_heads": 2},
    "rope by neighbours": {"rope": Rope(8, interleaved=True), "context": 6, "bias": True},
    "half of rope, normed heads": {"rope": Rope(8, fraction=0.5), "qk_norm": 1e-6},
    "whole signal": {"causal": False, "rope": Rope(8)},
}


def make(form: str) -> Attention:
    module = Attention(16, 4, head_dim=8, **FORMS[form]).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_formula(form):
    module, x = make(form), torch.randn(1, 14, 16)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], plain(module, x[0]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), consume=st.booleans(), seed=st.integers(0, 999))
def test_any_chunks_of_any_rows_equal_the_whole(form, lengths, consume, seed):
    module, lengths, chance = make(form), torch.tensor(lengths), random.Random(seed)
    consume = consume and module.causal
    x = torch.randn(len(lengths), 40, 16)
    state, heard = module.initial_state(len(lengths)), torch.zeros_like(lengths)
    got = [[] for _ in lengths]
    with torch.no_grad():
        whole = [module(x[b : b + 1, :n])[0] for b, n in enumerate(lengths)]
        while bool((heard < lengths).any()):
            size = chance.choice([0, 1, 2, 3, 6, 13])  # a ring has room for 9 at once
            take = torch.tensor([chance.randint(0, min(size, int(n))) for n in lengths - heard])
            chunk = torch.full((len(lengths), size, 16), torch.nan)
            for b, n in enumerate(take):
                chunk[b, :n] = x[b, heard[b] : heard[b] + n]
            y, state = module.step(chunk, state, take, consume=True) if consume else module.step(chunk, state, take)
            for b, n in enumerate(state.emitted):
                got[b].append(y[b, :n])
            heard += take
        y, state = module.flush(state)
    for b, n in enumerate(state.emitted):
        torch.testing.assert_close(torch.cat([*got[b], y[b, :n]]), whole[b], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "whole signal"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_held_row_keeps_its_state_to_the_bit_and_the_old_state_is_a_snapshot(form, size):
    module = make(form)
    with torch.no_grad():
        _, state = module.step(torch.randn(2, 9, 16), module.initial_state(2))
        before = state.map(torch.clone)
        _, after = module.step(torch.randn(2, size, 16), state, torch.tensor([0, size]))
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor)
        if name in ("keys", "values"):
            assert torch.equal(after[name][0, : tensor.shape[1]], tensor[0])
            assert not torch.equal(after[name][1], tensor[1])
    assert after["position"].tolist() == [9, 9 + size]


def test_rows_of_a_growing_store_join_and_reset():
    module = make("plain")
    x = torch.randn(1, 40, 16)
    with torch.no_grad():
        _, old = module.step(x[:, :39], module.initial_state(1))
        both = old.take([0, 0]).put([0], module.initial_state(1))
        y, both = module.step(x[:, 39:].expand(2, -1, -1), both)
        torch.testing.assert_close(y[0], module(x[:, 39:])[0])
        torch.testing.assert_close(y[1], module(x)[0, 39:], atol=1e-5, rtol=1e-4)


def test_a_long_signal_in_blocks_equals_its_mask():
    module, x = make("window"), torch.randn(1, 700, 16)
    with torch.no_grad():
        full = torch.ones(1, 700, 700, dtype=torch.bool)
        torch.testing.assert_close(module(x), module(x, mask=full), atol=1e-5, rtol=1e-4)


def test_documents_packed_into_a_row_do_not_see_each_other():
    module, x = make("rope by halves"), torch.randn(1, 11, 16)
    document = torch.tensor([0] * 4 + [1] * 7)
    positions = torch.cat([torch.arange(4), torch.arange(7)])[None]
    with torch.no_grad():
        packed = module(x, mask=(document[:, None] == document)[None], rotation=module.rope(positions))
        apart = torch.cat([module(x[:, :4]), module(x[:, 4:])], dim=1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-4)


def test_a_prefix_is_the_keys_and_values_of_earlier_frames():
    module, x = make("rope by halves"), torch.randn(2, 12, 16)
    with torch.no_grad():
        whole = module(x)[:, 5:]
        _, k, v = module.project(x[:, :5], module.rope(torch.arange(5)[None]))
        torch.testing.assert_close(module(x[:, 5:], prefix=(k, v)), whole, atol=1e-5, rtol=1e-4)
        y, _ = module.step(x[:, 5:], module.initial_state(2, prefix=(k, v)))
        torch.testing.assert_close(y, whole, atol=1e-5, rtol=1e-4)
    with pytest.raises(RequestError, match="leave the context"):
        make("window")(x, prefix=(k, v))


def test_the_past_beyond_the_context_does_not_count():
    module, x = make("window"), torch.randn(1, 30, 16)
    other = x.clone()
    other[:, :20] = torch.randn(1, 20, 16)
    with torch.no_grad():
        assert torch.equal(module(x)[:, 24:], module(other)[:, 24:])
        assert not torch.allclose(module(x)[:, 23], module(other)[:, 23])


def test_cross_attention_ignores_what_lies_beyond_a_memory():
    module = CrossAttention(16, 4, memory=6, kv_heads=2)
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 9, 6)
    lengths = torch.tensor([9, 4, 0])
    memory[1, 4:] = torch.nan
    with torch.no_grad():
        y = module(x, module.remember(memory), lengths)
        torch.testing.assert_close(y[1:2], module(x[1:2], module.remember(memory[1:2, :4])))
        assert bool((y[2] == 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 3}, "multiple"), ({"heads": 4, "kv_heads": 3}, "share"), ({"heads": 4, "context": 0}, "context 0"),
     ({"heads": 4, "context": 3, "causal": False}, "limits")],
)
def test_impossible_shapes_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        Attention(16, **options)


def test_half_precision_stays_close():
    module, x = make("rope by halves"), torch.randn(2, 20, 16)
    with torch.no_grad():
        exact = module(x)
        half = module.to(torch.bfloat16)
        y, state = half.step(x.bfloat16(), half.initial_state(2))
    assert y.dtype == state["keys"].dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.15, rtol=0.1)
