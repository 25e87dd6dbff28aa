"""Inputs and adapters: streams agree with whole signals, padding is never read, each way of entering counts."""

import pytest
import torch

from vivavoce.errors import RecipeError, RequestError
from vivavoce.lm.adapters import ADAPTERS, make_adapter
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.inputs import Inputs
from vivavoce.nn.streaming import INFINITE
from vivavoce.nn.transformer import TransformerConfig

OPTIONS = {"linear": {"stack": 2}, "mlp": {"stack": 5}, "conv": {}, "qformer": {"queries": 2, "window": 5}}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_stream_and_ignore_padding(kind):
    module = make_adapter(kind, 6, 16, OPTIONS[kind]).eval()
    x, lengths = torch.randn(3, 23, 6), torch.tensor([23, 11, 2])
    padded = x.clone()
    padded[1, 11:], padded[2, 2:] = torch.nan, torch.nan
    frames = module.frames(lengths)
    with torch.no_grad():
        y = module(padded, lengths)
        state, at, got = module.initial_state(3), 0, [[], [], []]
        for size in (1, 6, 3, 13):
            z, state = module.step(padded[:, at : at + size], state, (lengths - at).clamp(0, size))
            at += size
            for b in range(3):
                got[b].append(z[b, : state.emitted[b]])
        rest, state = module.flush(state)
        for b, n in enumerate(frames.tolist()):
            alone = module(x[b : b + 1, : lengths[b]])[0]
            assert alone.shape == (n, 16)
            torch.testing.assert_close(y[b, :n], alone, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(torch.cat([*got[b], rest[b, : state.emitted[b]]]), alone, atol=1e-5, rtol=1e-4)
    assert frames.tolist() == {"linear": [11, 5, 1], "mlp": [4, 2, 0], "conv": [6, 3, 1], "qformer": [10, 6, 2]}[kind]
    assert (module.lookahead == INFINITE) == (kind == "qformer")


def test_what_a_recipe_gets_wrong_is_named():
    with pytest.raises(RecipeError, match="'attention' is unknown"):
        make_adapter("attention", 4, 8, {})
    with pytest.raises(RecipeError, match=r"inputs\.user"):
        make_adapter("mlp", 4, 8, {"stride": 2}, "inputs.user")
    config = TransformerConfig(1, 16, 2)
    with pytest.raises(RecipeError, match=r"set backbone\.memory"):
        Inputs({"text": {"width": 4, "enters": "memory"}}, config)
    with pytest.raises(RecipeError, match="there are grid"):
        Inputs({"text": {"width": 4, "enters": "door"}}, config)
    with pytest.raises(RequestError, match="no input"):
        Inputs({"text": {"width": 4}}, config)({"tax": torch.zeros(1, 3, 4)})


@pytest.fixture(scope="module")
def stage():
    torch.manual_seed(7)
    config = TransformerConfig(2, 16, 2, memory=12, condition=10)
    parts = {
        "audio": {"width": 6, "enters": "grid", "adapter": {"kind": "mlp", "stack": 2}},
        "text": {"width": 4, "enters": "memory"},
        "melody": {"width": 5, "enters": "memory"},
        "style": {"width": 3, "enters": "prefix"},
        "speaker": {"width": 8, "enters": "condition"},
    }
    inputs, decoder = Inputs(parts, config).eval(), Decoder(config).eval()
    for name, parameter in decoder.named_parameters():
        if "project" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return inputs, decoder


def given() -> dict[str, torch.Tensor]:
    return {
        "audio": torch.randn(2, 8, 6), "text": torch.randn(2, 5, 4), "melody": torch.randn(2, 3, 5),
        "style": torch.randn(2, 4, 3), "speaker": torch.randn(2, 8),
    }  # fmt: skip


def test_every_input_counts_and_can_be_dropped(stage):
    inputs, decoder = stage
    values = given()

    def run(values):
        entered = inputs(values)
        columns = entered.columns.get("audio", torch.zeros(2, 4, 16))
        return decoder(columns, **entered.context)

    with torch.no_grad():
        base = run(values)
        assert base.shape == (2, 4, 16)
        for name in values:
            changed = {**values, name: values[name] + torch.randn_like(values[name])}
            dropped = {key: value for key, value in values.items() if key != name}
            assert not torch.allclose(run(changed), base, atol=1e-3), name
            assert not torch.allclose(run(dropped), base, atol=1e-3), name


def test_rows_of_different_lengths_are_what_they_are_alone(stage):
    inputs, decoder = stage
    values = given()
    lengths = {"text": torch.tensor([5, 2]), "melody": torch.tensor([1, 3]), "audio": torch.tensor([8, 4])}
    for name, size in lengths.items():
        for b in range(2):
            values[name][b, size[b] :] = torch.nan
    with torch.no_grad():
        entered = inputs(values, lengths)
        assert entered.memory_lengths.tolist() == [6, 5]
        together = decoder(entered.columns["audio"], lengths["audio"] // 2, **entered.context)
        for b in range(2):
            alone = {n: v[b : b + 1, : lengths[n][b]] if n in lengths else v[b : b + 1] for n, v in values.items()}
            one = inputs(alone)
            expected = decoder(one.columns["audio"], **one.context)[0]
            torch.testing.assert_close(together[b, : len(expected)], expected, atol=1e-5, rtol=1e-4)


def test_steps_take_the_same_inputs(stage):
    inputs, decoder = stage
    with torch.no_grad():
        entered = inputs(given())
        whole = decoder(entered.columns["audio"], **entered.context)
        memory = decoder.transformer.remember(entered.memory, entered.memory_lengths)
        state = decoder.transformer.initial_state(2, prefix=entered.prefix)
        got = []
        for t in range(4):
            column = entered.columns["audio"][:, t : t + 1]
            y, state = decoder.step(column, state, memory=memory, condition=entered.condition)
            got.append(y)
    torch.testing.assert_close(torch.cat(got, 1), whole, atol=1e-5, rtol=1e-4)
