"""Steps by OpenVINO, run by `test_engine`: the tokens that torch chooses, to rows that are held, reset and of different
age; int8 weights."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import vivavoce
from moshi_models import CARD, LEVELS, directory, language_model
from vivavoce.errors import MissingExtra, RequestError
from vivavoce.lm import engine as engines
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.depth import DepthTransformer
from vivavoce.lm.depth_decoder import DepthDecoder
from vivavoce.lm.engine import DecoderSteps, round_rows
from vivavoce.lm.sampling import Sampling
from vivavoce.nn.transformer import TransformerConfig
from vivavoce.systems.engines import use_engine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """variant -> directory of a small Moshi."""
    found = {}

    def get(variant):
        if variant not in found:
            found[variant] = directory(tmp_path_factory.mktemp("moshi"), *language_model(variant))
        return found[variant]

    return get


def conversation(model, rows, ticks=14):
    """What several rows say, one held now and then, one reset in the middle."""
    chance = np.random.default_rng(3)
    lockstep = model.duplex_rows(rows)
    said = []
    for tick in range(ticks):
        if tick == 8:
            lockstep.reset(rows - 1, 7)
        frames = chance.normal(0, 0.1, (rows, lockstep.frame_size)).astype(np.float32)
        active = [row != 0 or rows == 1 or tick % 4 != 3 for row in range(rows)]
        said.append([None if out is None else out.tokens for out in lockstep.step(frames, active)])
    return said


def counted(monkeypatch):
    """How many compiled steps were run."""
    calls, run = [], engines.Graph.__call__

    def watched(self, *inputs):
        calls.append(self)
        return run(self, *inputs)

    monkeypatch.setattr(engines.Graph, "__call__", watched)
    return calls


@pytest.mark.parametrize("variant, rows, weights", [
    ("published", 1, "float32"), ("published", 3, "int8"), ("shared sets, narrow tables, norms", 2, "float32"),
])  # fmt: skip
def test_a_conversation_is_torchs(folders, variant, rows, weights, monkeypatch):
    """Sampled tokens, past the context of six frames: with float32 weights those of the model as it is, with int8 those
    of torch with the same rounded weights."""
    expected = vivavoce.load(folders(variant))
    if weights == "int8":
        for part in (expected.system.stage.backbone, expected.system.stage.linear, expected.system.stage.depth):
            round_rows(part)
    model = vivavoce.load(folders(variant), engine="openvino", weights=weights)
    calls = counted(monkeypatch)
    found = conversation(model, rows)
    assert len(calls) > 13 * (1 + LEVELS)
    monkeypatch.undo()
    assert found == conversation(expected, rows)
    text = torch.arange(5)[None]
    items = [("text", text, True), ("voice", torch.arange(5 * LEVELS).view(LEVELS, 5) % CARD, True),
             ("user", torch.arange(5 * LEVELS).view(LEVELS, 5) % CARD, False)]  # fmt: skip
    scores, theirs = model.loglik(items), expected.loglik(items)
    for name, (total, count) in theirs.items():
        assert scores[name] == (pytest.approx(total, abs=1e-4), count)


def test_rounded_activations_change_a_little():
    """`int8-dynamic`, several rows: near what rounded weights alone give, and not equal."""
    torch.manual_seed(0)
    head = DepthDecoder(64, [30] * 4, layers=2, width=64, heads=4).eval()
    round_rows(head)
    hidden, seen = torch.randn(8, 64), {"int8": [], "int8-dynamic": []}
    for weights, kept in seen.items():
        head.engine = engines.DepthDecoderSteps(head, weights)

        def pick(level, logits, kept=kept):
            kept.append(logits)
            return torch.full((8,), level)

        with torch.inference_mode():
            head.choose(hidden, pick)
    for plain, rounded in zip(seen["int8"], seen["int8-dynamic"], strict=True):
        assert 1e-5 < float((plain - rounded).norm() / plain.norm()) < 0.03


def test_int8_changes_a_little(folders):
    """The loss of what a model would say moves by little; rounding twice changes nothing."""
    plain = vivavoce.load(folders("published"))
    model = vivavoce.load(folders("published"), engine="openvino", weights="int8")
    pairs = list(zip(plain.system.stage.parameters(), model.system.stage.parameters()))
    moved = [float((a - b).norm() / a.norm()) for a, b in pairs if a.dim() >= 2 and not torch.equal(a, b)]
    assert len(moved) > 10 and max(moved) < 0.01
    matrix = torch.nn.Linear(40, 30)
    with torch.no_grad():
        matrix.weight[3] = 0
    round_rows(matrix)
    once = matrix.weight.detach().clone()
    round_rows(matrix)
    assert torch.allclose(once, matrix.weight, rtol=1e-6) and not once[3].any()
    steps = once / engines.scales(once)
    assert torch.allclose(steps, steps.round(), atol=1e-3) and int(steps.abs().max().round()) == 127


CONFIGS = {
    "ring": TransformerConfig(layers=2, width=32, heads=4, context=5),
    "grouped queries, growing": TransformerConfig(layers=2, width=32, heads=4, kv_heads=2, qk_norm=True),
    "classic, growing": TransformerConfig.classic(2, 32, 4, max_positions=64, context=None),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_decoders_step(kind):
    """Rows of different age and rows that are held: the same hidden columns and the same state as torch has."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIGS[kind]).eval()
    steps = DecoderSteps(decoder)
    with torch.inference_mode():
        first = torch.randn(3, 6, 32)
        _, before = decoder.step(first, decoder.initial_state(3), torch.tensor([6, 2, 4]))
        for tick in range(22):  # a store that grows, grows twice
            x = torch.randn(3, 1, 32)
            lengths = None if tick % 3 else torch.tensor([1, 0, 1])
            assert steps.takes(x, before, {})
            y, after = steps.step(x, before, lengths)
            expected, state = decoder.step(x, before, lengths)
            live = slice(None) if lengths is None else lengths > 0
            assert torch.allclose(y[live], expected[live], atol=2e-5)
            assert torch.equal(after["position"], state["position"]) and after.keys() == state.keys()
            for name, value in after["layer_1"].items():
                assert torch.allclose(value, state["layer_1"][name], atol=1e-5), name
            before = after
    assert not steps.takes(x, decoder.initial_state(3), {}) and not steps.takes(x, before, {}), "a gradient is asked"
    with torch.inference_mode():
        assert not steps.takes(torch.randn(3, 2, 32), before, {}), "two frames"
        assert not steps.takes(x, decoder.initial_state(3), {}), "a first frame"
        assert not steps.takes(x, before, {"memory": before})


@pytest.mark.parametrize("make", [
    lambda: DepthTransformer(24, 16, 2, 2, [20] * 4, prefix=9),
    lambda: DepthTransformer(24, 16, 2, 2, [20] * 4, weights_per_step=False, final_norm="per_step"),
    lambda: DepthTransformer(24, 16, 1, 2, [20] * 4, weights_per_step=[0, 1, 1, 1], entry_per_step=False),
])  # fmt: skip
def test_levels_of_a_column(make):
    """Logits of every level as torch has them, given the same choices; and of the first levels alone."""
    torch.manual_seed(0)
    depth = make().eval()
    hidden, prefix = torch.randn(3, 24), torch.tensor([1, -1, 4]) if depth.prefix is not None else None
    seen = {"torch": [], "openvino": []}
    for name in seen:
        depth.engine = None if name == "torch" else engines.DepthSteps(depth)

        def choose(k, logits, kept=seen[name]):
            kept.append(logits)
            return logits.argmax(-1)

        with torch.inference_mode():
            whole = depth.generate(hidden, choose, prefix)
            assert torch.equal(depth.generate(hidden, choose, prefix, 2), whole[:, :2])
    assert len(seen["torch"]) == 6
    for ours, theirs in zip(seen["openvino"], seen["torch"], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_depth_decoder(rows):
    """CSM's, with its own decoder and matrices: logits of every level, given the same choices."""
    torch.manual_seed(0)
    head = DepthDecoder(24, [20, 21, 22, 23, 24], layers=2, width=16, heads=4, kv_heads=2).eval()
    steps, seen = engines.DepthDecoderSteps(head), []

    def pick(level, logits):
        seen.append(logits)
        return logits.argmax(-1)

    with torch.inference_mode():
        for count in (rows, rows, max(rows - 1, 1)):  # and of fewer rows, with what there is
            hidden = torch.randn(count, 24)
            head.engine = None
            expected = head.choose(hidden, pick)
            head.engine = steps
            assert torch.equal(head.choose(hidden, pick), expected)
            assert torch.equal(head.choose(hidden, pick, levels=2), expected[:, :2])
            for ours, theirs in zip(seen[5:10], seen[:5], strict=True):
                assert torch.allclose(ours, theirs, atol=1e-5)
            seen.clear()
    assert len(steps._graphs._made) == 1


def test_a_unit_language_model_fills_the_same(monkeypatch):
    """A store that grows, a batch of prompts and answers of different length: `fill` as torch has it."""
    plain = vivavoce.build("twist", size="smoke")
    stream = next(iter(plain.system.task("continue").fills))
    end = plain.system.streams[stream].spec.end
    plain.system.sampling[stream] = Sampling(logit_bias={end: -1e9})
    model = copy.deepcopy(plain)
    use_engine(model, "openvino")
    given = [{stream: np.arange(n)[None] % 7} for n in (3, 9, 5)]
    length, calls = [30, 19, 20], counted(monkeypatch)
    found = model.fill("continue", given, length=length, seed=[1, 2, 3])
    assert len(calls) >= 2 * 26 and len({id(each) for each in calls}) == 4, "a graph for one row, and one for more"
    for n, ours, theirs in zip(length, found, plain.fill("continue", given, length, [1, 2, 3]), strict=True):
        assert np.array_equal(ours[stream], theirs[stream]) and ours[stream].shape == (1, n)


@pytest.mark.parametrize("options, message", [
    ({"engine": "tensorrt"}, "engine 'tensorrt': there are torch, openvino"),
    ({"engine": "openvino", "weights": "int3"}, "weights 'int3': there are float32, int8, int8-dynamic"),
    ({"weights": "int8"}, "weights 'int8' are for engine='openvino'"),
    ({"engine": "openvino", "dtype": torch.bfloat16}, "takes float32 weights on the CPU, not torch.bfloat16"),
])  # fmt: skip
def test_what_there_is_not_is_said(options, message):
    with pytest.raises(RequestError, match=message):
        vivavoce.load("mini", **options)
    with pytest.raises(RequestError, match="tone has no language model: leave out engine='openvino'"):
        vivavoce.load("tone", engine="openvino")


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"'vivavoce\[openvino\]'"):
        vivavoce.load("mini", engine="openvino")


def test_few_numbers_of_rows_stay_compiled():
    decoder = Decoder(dataclasses.replace(CONFIGS["ring"], layers=1)).eval()
    decoder.engine = DecoderSteps(decoder)
    with torch.inference_mode():
        for rows in (1, 2, 3, 2):
            _, state = decoder.step(torch.randn(rows, 1, 32), decoder.initial_state(rows))
            decoder.step(torch.randn(rows, 1, 32), state)
    assert list(decoder.engine._graphs._made) == [3, 2]
