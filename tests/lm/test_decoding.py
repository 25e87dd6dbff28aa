"""The decoding loop over layouts: equal to teacher forcing, the same in any batch, rows that start and reset alone."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import Given, StreamSpec, build_layout
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.decoding import Generator, guidance
from vivavoce.lm.grid import GridLM
from vivavoce.lm.rules import both, never, not_before, only
from vivavoce.lm.sampling import Sampling
from vivavoce.lm.text_lm import TextLM
from vivavoce.nn.transformer import TransformerConfig

EXAMPLES = 60 if os.environ.get("VIVAVOCE_LONG") == "1" else 5
TEXT, VOICE = StreamSpec("text", rate=12.5), StreamSpec("voice", 3, 12.5)
USER = StreamSpec("user", 2, 12.5, given=True)
EAR = StreamSpec("ear", rate=12.5, given=True)
DEPTH = {"kind": "depth", "width": 16, "layers": 1, "heads": 2}
SIZES = {"text": [11], "voice": [7, 8, 9], "user": [5, 6]}
CASES = {
    "flat": ({"kind": "flat"}, [StreamSpec("text"), VOICE], {"text": {"kind": "linear"}, "voice": {"kind": "linear"}}),
    "delay, depth": ({"kind": "delay"}, [VOICE], {"voice": DEPTH}),
    "duplex": (
        {"kind": "multi-stream", "delays": {"text": 0, "voice": [0, 1, 1], "user": [0, 1], "ear": 0}},
        [TEXT, VOICE, USER, EAR],
        {"voice": {**DEPTH, "after": "text"}, "text": {"kind": "linear"}},
    ),
    "snac by frames": (
        {"kind": "parallel", "clock": "frame", "positions": "stream"},
        [StreamSpec("voice", 3, 12, (1, 2, 4), blank=6)],
        {"voice": DEPTH},
    ),
    "interleaved, tags": (
        {"kind": "interleaved", "text": 2, "voice": 3, "turn": 1},
        [StreamSpec("text"), StreamSpec("voice", 3)],
        {"text": {"kind": "linear"}, "voice": {"kind": "linear"}},
    ),
}


def make(case: str, **backbone) -> GridLM:
    torch.manual_seed(4)
    spec, streams, heads = CASES[case]
    names = {stream.name for stream in streams}
    layout = build_layout(spec, streams)
    decoder = Decoder(TransformerConfig(2, 32, 4, **backbone))
    widths = {"ear": 4} if "ear" in names else {}
    model = GridLM(decoder, layout, {n: s for n, s in SIZES.items() if n in names}, heads, widths).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "table" not in name:
            parameter.data.copy_(1.5 * parameter.shape[-1] ** -0.5 * torch.randn(parameter.shape))
    return model


def request(case: str, lengths: torch.Tensor) -> tuple[dict, dict, dict]:
    """lengths, given ids and frames of a request; every row's content depends on its length only."""
    rows, longest = len(lengths), int(lengths.max())
    sizes = {stream.name: lengths for stream in CASES[case][1]}
    values, frames = {}, {}
    if case == "duplex":
        values["user"] = torch.full((rows, 2, longest), -1)
        frames["ear"] = torch.zeros(rows, longest, 4)
        for b, n in enumerate(lengths.tolist()):
            generator = torch.Generator().manual_seed(n)
            values["user"][b, :, :n] = torch.randint(0, 5, (2, n), generator=generator)
            frames["ear"][b, :n] = torch.randn(n, 4, generator=generator)
    return sizes, values, frames


@pytest.mark.parametrize("case", CASES)
def test_generation_equals_teacher_forcing(case):
    """Greedy tokens are the largest logits of the teacher-forced pass over the very same tokens."""
    model, lengths = make(case), torch.tensor([6, 3, 1])
    sizes, values, frames = request(case, lengths)
    filled, walked = Generator(model).generate(sizes, values, frames)
    places = model.layout.place(sizes)
    assert walked.columns.tolist() == places.columns.tolist()
    with torch.no_grad():
        predictions = model(places, {**values, **filled}, frames)
    cells = 0
    for name, prediction in predictions.items():
        assert bool((prediction.targets[prediction.loss] >= 0).all())
        for k, logits in enumerate(prediction.logits):
            here = prediction.loss[..., k]
            best = logits.max(-1).values
            chosen = logits.gather(-1, prediction.targets[..., k : k + 1].clamp(min=0))[..., 0]
            assert float((best - chosen)[here].sum()) < 1e-3
            cells += int(here.sum())
        spec = model.layout.streams[model.numbers[name]]
        assert filled[name].shape == (3, spec.levels, filled[name].shape[2])
        assert len(filled[name].unique()) > 2, "all tokens alike: this test could not fail"
    assert cells == int(places.loss.sum())


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_a_row_says_the_same_in_any_company(case, data):
    model = make(case, context=9)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    seeds = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths))))
    options = {"top_k": data.draw(st.sampled_from([None, 4])), "temperature": 1.3, "repetition_penalty": 1.2}
    generator = Generator(model, {name: Sampling(**options) for name in model.filled})
    sizes, values, frames = request(case, lengths)
    together, _ = generator.generate(sizes, values, frames, seeds=seeds)
    for b in range(len(lengths)):
        alone, _ = generator.generate(*request(case, lengths[b : b + 1]), seeds=seeds[b : b + 1])
        for name in model.filled:
            n = alone[name].shape[2]
            assert torch.equal(together[name][b, :, :n], alone[name][0])
            assert bool((together[name][b, :, n:] == -1).all())


def test_rows_start_are_held_and_are_reset_independently():
    model = make("duplex", context=6)
    generator = Generator(model, {"text": Sampling(), "voice": Sampling(top_k=5)})
    sizes, values, frames = request("duplex", torch.tensor([8, 7, 5]))
    seeds = torch.tensor([3, 4, 5])
    alone = [
        generator.generate(
            {n: x[b : b + 1] for n, x in sizes.items()}, {"user": values["user"][b : b + 1]},
            {"ear": frames["ear"][b : b + 1]}, seeds=seeds[b : b + 1],
        )[0]
        for b in range(3)
    ]  # fmt: skip
    said = [[], [], []]
    with torch.inference_mode():
        state = generator.start(2, {n: x[:2] for n, x in sizes.items()}, seeds=seeds[:2])
        who = [0, 1]
        for tick in range(30):
            rows = torch.tensor([tick % 3 != 1, tick % 2 == 0])
            column, state = generator.look(state, rows)
            if bool(column.done[1]) and who[1] == 1 and len(said[1]) == int(alone[1]["text"].shape[2]) + 1:
                third = generator.start(1, {n: x[2:] for n, x in sizes.items()}, seeds=seeds[2:])
                state, who = generator.reset(state, [1], third), [0, 2]
                continue
            given_ids = column.gather({"user": values["user"][who]})
            index = torch.where(column.stream == column.number("ear"), column.index, 0).amax(1)
            ear = {"ear": frames["ear"][who, index]}
            before = state
            ids, state = generator.fill(column, state, torch.where(column.given, given_ids, -1), ear)
            for b in range(2):
                if rows[b] and not column.done[b]:
                    said[who[b]].append(ids[b])
                else:
                    assert torch.equal(state["hidden"][b], before["hidden"][b])
    for b in range(3):
        text = torch.stack(said[b])[: alone[b]["text"].shape[2], 0]
        assert torch.equal(text, alone[b]["text"][0, 0]), b


def test_known_cells_are_forced_and_change_what_follows():
    model = make("delay, depth")
    prompt = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 0]]])
    sizes = {"voice": torch.tensor([9])}
    known = Given(known={"voice": torch.tensor([3])})
    free, _ = Generator(model).generate(sizes)
    filled, places = Generator(model).generate(sizes, {"voice": prompt}, given=known)
    assert torch.equal(filled["voice"][..., :3], prompt)
    assert not torch.equal(filled["voice"][..., 3:], free["voice"][..., 3:])
    assert int(places.loss.sum()) == 18


def test_an_end_token_ends_a_stream_and_a_rule_can_forbid_it():
    streams = [StreamSpec("text", end=0)]
    model = GridLM(
        Decoder(TransformerConfig(1, 16, 2)), build_layout({"kind": "flat"}, streams), {"text": [3]},
        {"text": {"kind": "linear"}},
    ).eval()  # fmt: skip
    seeds = torch.arange(8)
    filled, places = Generator(model, {"text": Sampling()}).generate({}, seeds=seeds, limit=500)
    for row, n in zip(filled["text"][:, 0], places.columns):
        assert int(row[n - 1]) == 0 and bool((row[: n - 1] > 0).all())
    assert len(places.columns.unique()) > 1

    ruled = Generator(model, {"text": Sampling()}, {"text": both(not_before(5, [0]), never([2]))})
    filled, places = ruled.generate({}, seeds=seeds, limit=500)
    assert int(places.columns.min()) >= 6
    assert set(filled["text"].unique().tolist()) == {-1, 0, 1}
    ones, _ = Generator(model, {"text": Sampling()}, {"text": only([1])}).generate({"text": torch.tensor([9])})
    assert ones["text"].unique().tolist() == [1]
    with pytest.raises(RequestError, match="within 4 columns"):
        ruled.generate({}, seeds=seeds, limit=4)


def test_memory_prefix_and_condition_reach_both_forms():
    model = make("delay, depth", memory=6, condition=5)
    for parameter in model.backbone.parameters():
        if parameter.dim() == 2 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    memory, condition = torch.randn(2, 7, 6), torch.randn(2, 5)
    prefix = [(torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)) for _ in range(2)]
    sizes = {"voice": torch.tensor([5, 4])}
    kept = model.backbone.transformer.remember(memory)
    generator = Generator(model)
    filled, places = generator.generate(sizes, initial={"prefix": prefix}, memory=kept, condition=condition)
    with torch.no_grad():
        forced = model(places, filled, memory=memory, condition=condition, prefix=prefix)["voice"]
    for k, logits in enumerate(forced.logits):
        here = forced.loss[..., k]
        assert torch.equal(logits.argmax(-1)[here], forced.targets[..., k][here])
    other, _ = generator.generate(sizes, memory=kept, condition=condition)
    assert not torch.equal(other["voice"], filled["voice"])


@pytest.mark.parametrize("positions", ["column", "stream"])
def test_without_a_begin_vector_the_grid_is_the_text_lm_itself(positions):
    torch.manual_seed(9)
    text = TextLM(TransformerConfig(2, 32, 4), 11).eval()
    layout = build_layout({"kind": "flat", "positions": positions}, [StreamSpec("text")])
    head = {"kind": "linear", "bias": False}
    model = GridLM(text.decoder, layout, {"text": [11]}, {"text": head}, begin=False).eval()
    model.tables["text"][0].weight = text.table.weight
    model.linear["text"][0].weight = text.head.weight
    ids, lengths = torch.randint(0, 11, (2, 1, 8)), torch.tensor([8, 3])
    with torch.no_grad():
        found = model(layout.place({"text": lengths}), {"text": ids})["text"].logits[0]
        expected = text(ids[:, 0])
        for row, n in enumerate(lengths):
            torch.testing.assert_close(found[row, 1:n], expected[row, : n - 1], atol=1e-5, rtol=1e-4)
    prompt, known = {"text": ids[:, :, :2]}, Given(known={"text": torch.tensor([2, 2])})
    filled, _ = Generator(model).generate({"text": torch.tensor([6, 6])}, prompt, given=known)
    said = ids[:, 0, :2]
    with torch.no_grad():
        for _ in range(4):
            said = torch.cat([said, text(said)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(filled["text"][:, 0], said)
    with pytest.raises(RequestError, match="first column"):
        Generator(model).generate({"text": torch.tensor([6])})


def test_guided_views_are_one_request():
    model = make("duplex")
    sizes, values, frames = request("duplex", torch.tensor([6, 4]))
    twice = {name: x.repeat_interleave(2) for name, x in sizes.items()}
    ids, ear = values["user"].repeat_interleave(2, 0), frames["ear"].repeat_interleave(2, 0)
    dropped_ids, dropped_ear = ids.clone(), ear.clone()
    dropped_ids[1::2], dropped_ear[1::2] = -1, 0
    sampling, seeds = {"text": Sampling(), "voice": Sampling()}, torch.tensor([1, 2])
    plain, _ = Generator(model, sampling).generate(sizes, values, frames, seeds=seeds)
    twin = seeds.repeat_interleave(2)

    def guided(scale):
        generator = Generator(model, sampling, views=2, combine=guidance(scale))
        return generator.generate(twice, {"user": dropped_ids}, {"ear": dropped_ear}, seeds=twin)[0]

    for name in ("text", "voice"):
        assert torch.equal(guided(1.0)[name][::2], plain[name])
        strong = guided(3.0)[name]
        assert torch.equal(strong[::2], strong[1::2])
        assert not torch.equal(strong[::2], plain[name])
    with pytest.raises(RequestError, match="views"):
        Generator(model, views=2)


def test_gradients_reach_what_stands_in_the_grid():
    model = make("interleaved, tags").train()
    sizes = {"text": torch.tensor([5, 3]), "voice": torch.tensor([7, 2])}
    values = {"text": torch.randint(0, 11, (2, 1, 5)), "voice": torch.randint(0, 7, (2, 3, 7))}
    predictions = model(model.layout.place(sizes), values)
    loss = 0.0
    for prediction in predictions.values():
        for k, logits in enumerate(prediction.logits):
            here = prediction.loss[..., k]
            loss = loss + torch.nn.functional.cross_entropy(logits[here], prediction.targets[..., k][here])
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_recipes_that_cannot_be_built_are_refused():
    layout = build_layout({"kind": "multi-stream"}, [TEXT, VOICE])
    decoder = Decoder(TransformerConfig(1, 16, 2))

    def build(heads, sizes=SIZES):
        return GridLM(decoder, layout, {n: sizes[n] for n in ("text", "voice")}, heads)

    circle = {"text": {**DEPTH, "after": "voice"}, "voice": {**DEPTH, "after": "text"}}
    for heads, message in (
        ({"user": {"kind": "linear"}}, "no stream of tokens"), ({"text": {"kind": "tree"}}, "'tree' is unknown"),
        ({"text": {"kind": "linear", "deep": 1}}, "heads.text"), (circle, "circle"),
        ({"voice": {**DEPTH, "after": "mel"}}, "after"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            build(heads)
    with pytest.raises(RecipeError, match="2 sizes for 3 levels"):
        build({}, {**SIZES, "voice": [3, 3]})
    with pytest.raises(RequestError, match="no head"):
        Generator(build({"text": {"kind": "linear"}}), {"voice": Sampling()})


@pytest.mark.parametrize("case", [case for case in CASES if case != "duplex"])
def test_a_prompt_is_read_at_once_and_who_has_ended_is_left_out(case, monkeypatch):
    """What is said is what walking through every column with every row gives; far fewer columns are computed."""
    model, lengths, before = make(case), torch.tensor([9, 12, 24, 8]), torch.tensor([0, 7, 3, 5])
    chance = torch.Generator().manual_seed(1)
    sizes, values, _ = request(case, lengths)
    for spec in CASES[case][1]:
        size, frames = min(SIZES[spec.name]) - 1, 7 * max(spec.ratios or (1,))
        values[spec.name] = torch.randint(0, size, (4, spec.levels, frames), generator=chance)
    known = Given(known=dict.fromkeys(values, before))
    sampling = {name: Sampling(top_k=4, repetition_penalty=1.3) for name in model.filled}
    computed: list[int] = []
    step = model.backbone.step

    def counted(x, *rest, **options):
        computed.append(x.shape[0] * x.shape[1])
        return step(x, *rest, **options)

    monkeypatch.setattr(model.backbone, "step", counted)
    seeds, found = torch.arange(4), {}
    for lockstep in (True, False):
        computed.clear()
        generator = Generator(model, sampling, lockstep=lockstep)
        found[lockstep] = *generator.generate(sizes, values, given=known, seeds=seeds), sum(computed), len(computed)
    (slow, theirs, many, turns), (quick, places, few, fewer) = found[True], found[False]
    assert few < 0.8 * many and fewer < turns
    assert places.columns.tolist() == theirs.columns.tolist()
    assert torch.equal(places.mask("loss"), theirs.mask("loss"))
    assert torch.equal(places.index_grid(), theirs.index_grid())
    for name, ids in slow.items():
        assert torch.equal(quick[name], ids), name
        assert torch.equal(quick[name][1, :, :7], values[name][1, :, :7])


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    from vivavoce.lm import decoding

    model, prompt = make("flat"), torch.arange(40)[None, None] % 11
    sizes = {"text": torch.tensor([44, 21]), "voice": torch.tensor([3, 3])}
    known = Given(known={"text": torch.tensor([40, 20])})
    told = {"lengths": sizes, "values": {"text": prompt.expand(2, 1, 40)}, "given": known}
    whole, _ = Generator(model).generate(**told)
    monkeypatch.setattr(decoding, "PIECE", 16)
    pieces, _ = Generator(model).generate(**told)
    assert all(torch.equal(whole[name], pieces[name]) for name in ("text", "voice"))
    assert whole["text"].shape[2] == 44 and int((whole["text"][1] >= 0).sum()) == 21


def test_prompts_of_units_are_what_they_are_alone_beside_longer_ones():
    """Repetitions left out: what pads a prompt to the longest of the batch is no unit of it."""
    streams = [StreamSpec("text")]
    torch.manual_seed(0)
    layout = build_layout({"kind": "dedup"}, streams)
    model = GridLM(Decoder(TransformerConfig(1, 16, 2)), layout, {"text": [9]}, {"text": {"kind": "linear"}}).eval()
    prompts = [[1, 1, 2], [3, 4, 4, 4, 5, 6, 7], [8]]

    def said(some: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, some))
        values = torch.tensor([[each + [-1] * (longest - len(each))] for each in some])
        sizes = torch.tensor([len(each) for each in some])
        given = Given({"text": values}, known={"text": sizes})
        filled, _ = Generator(model).generate({"text": sizes + 6}, {"text": values}, given=given)
        return [[i for i in row[0].tolist() if i >= 0] for row in filled["text"]]

    together = said(prompts)
    assert together == [said([each])[0] for each in prompts]
    assert [len(row) for row in together] == [2 + 6, 5 + 6, 1 + 6]
