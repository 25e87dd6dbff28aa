"""Rows read side by side in one window: every row gives what it gives alone, and none sees another."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.layouts import StreamSpec, build_layout
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.grid import GridLM
from vivavoce.lm.packed import WHOLE, pieces
from vivavoce.nn.documents import Documents
from vivavoce.nn.transformer import TransformerConfig

UNITS = [StreamSpec("units", end=9)]
CODES = [StreamSpec("text"), StreamSpec("voice", 2, 25)]
CASES = {
    "flat": ({"kind": "flat"}, UNITS, {}, {}),
    "learned positions": ({"kind": "flat"}, UNITS, {"positions": "learned", "max_positions": 32}, {}),
    "by sums, no begin": ({"kind": "flat"}, UNITS, {}, {"begin": False}),
    "a window of 5": ({"kind": "flat"}, UNITS, {"context": 5}, {}),
    "levels in turn": ({"kind": "flat"}, CODES, {}, {}),
    "delay": ({"kind": "delay", "streams": ["voice"]}, CODES, {}, {}),
    "positions by stream": ({"kind": "flat", "positions": "stream"}, CODES, {}, {}),
}
LENGTHS = torch.tensor([7, 3, 12, 1, 5, 9])


def make(case: str) -> GridLM:
    torch.manual_seed(1)
    spec, streams, backbone, options = CASES[case]
    sizes = {"units": [10], "text": [7], "voice": [8, 9]}
    names = [stream.name for stream in streams if stream.name != "text" or spec["kind"] == "flat"]
    decoder = Decoder(TransformerConfig(2, 32, 4, **backbone))
    model = GridLM(decoder, build_layout(spec, streams), {s.name: sizes[s.name] for s in streams},
                   {name: {"kind": "linear"} for name in names}, **options)  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(1.5)
    return model


def inputs(case: str, rows: torch.Tensor | None = None) -> tuple:
    """Places and values of rows whose content depends on their length only."""
    streams = CASES[case][1]
    lengths = LENGTHS if rows is None else LENGTHS[rows]
    values = {}
    for spec in streams:
        cells = torch.full((len(lengths), spec.levels, int(lengths.max())), -1)
        for b, n in enumerate(lengths.tolist()):
            random = torch.Generator().manual_seed(n)
            cells[b, :, :n] = torch.randint(0, 7, (spec.levels, n), generator=random)
        values[spec.name] = cells
    layout = build_layout(CASES[case][0], streams)
    return layout.place({spec.name: lengths for spec in streams}), values


@pytest.fixture(params=[False, True], ids=["each by itself", "together"])
def together(request, monkeypatch):
    """Both ways in which attention goes through rows."""
    usual = Documents.__init__
    monkeypatch.setattr(Documents, "__init__", lambda self, *given: usual(self, *given, together=request.param))


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_give_what_each_gives_alone(case, together):
    model = make(case)
    places, values = inputs(case)
    packed = model.read(places, values, pack=WHOLE)
    assert packed.hidden.shape[:2] == (1, int(places.columns.sum()))
    compared = 0
    for row in range(len(LENGTHS)):
        alone = model.read(*inputs(case, torch.tensor([row])))
        mine = packed.rows[0] == row
        for name in model.order:
            one, many = model.predict(name, alone), model.predict(name, packed, mine[None])
            size = int(mine.sum())
            for k, logits in enumerate(one.logits):
                torch.testing.assert_close(many.logits[k], logits[0, :size], atol=1e-5, rtol=1e-5)
            assert torch.equal(many.targets, one.targets[0, :size]) and torch.equal(many.loss, one.loss[0, :size])
            compared += int(one.loss.sum())
    # Nothing comes before the first column of a model without a begin vector: it is not predicted.
    predicted = places.loss if model.begins else places.loss[:, 1:]
    assert compared == int(predicted.sum()) > 30


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_and_no_value_crosses_from_row_to_row(case, together):
    model = make(case)
    places, values = inputs(case)
    seen: list[torch.Tensor] = []
    inside = model.columns

    def columns(*args):
        seen.append(inside(*args).detach().requires_grad_())
        return seen[-1]

    model.columns = columns
    read = model.read(places, values, pack=WHOLE)
    for row in range(len(LENGTHS)):
        mine = read.rows[0] == row
        (gradient,) = torch.autograd.grad(read.hidden[0, mine].square().sum(), seen[-1], retain_graph=True)
        assert float(gradient[0, ~mine].abs().max()) == 0.0, "attention crossed from one row to another"
        assert mine.sum() < 2 or float(gradient[0, mine].abs().max()) > 0


def test_a_row_longer_than_the_window_is_cut_and_its_pieces_are_apart():
    model = make("flat")
    places, values = inputs("flat", torch.tensor([2]))
    packed = model.read(places, values, pack=8)
    whole = model.read(places, values)
    torch.testing.assert_close(packed.hidden[0, :8], whole.hidden[0, :8], atol=1e-5, rtol=1e-5)
    ids = values["units"][0, 0]
    with torch.no_grad():  # the second piece: the ids 7 to 10 predict the cells 8 to 11, and see nothing before
        later = model.backbone(model.tables["units"][0](ids[None, 7:11]))
    torch.testing.assert_close(packed.hidden[0, 8:], later[0], atol=1e-5, rtol=1e-5)
    assert pieces([12, 3, 8, 0, 9], 8) == [8, 4, 3, 8, 8, 1]


def test_an_unfitting_request_is_refused():
    model = make("flat")
    places, values = inputs("flat")
    with pytest.raises(RequestError, match="take no condition of their own"):
        model.read(places, values, pack=WHOLE, condition=torch.zeros(1, 2))


def test_frames_are_packed_with_their_own_row():
    """A stream of vectors beside the tokens: every column gets the frame of its own row."""
    torch.manual_seed(0)
    streams = [StreamSpec("units", rate=25), StreamSpec("ear", rate=25, given=True)]
    layout = build_layout({"kind": "multi-stream"}, streams)
    decoder = Decoder(TransformerConfig(1, 16, 2))
    model = GridLM(decoder, layout, {"units": [5]}, {"units": {"kind": "linear"}}, {"ear": 3})
    lengths = torch.tensor([4, 2])
    places = layout.place({"units": lengths, "ear": lengths})
    values, frames = {"units": torch.randint(0, 5, (2, 1, 4))}, {"ear": torch.randn(2, 4, 3)}
    whole, packed = model.read(places, values, frames), model.read(places, values, frames, pack=8)
    torch.testing.assert_close(packed.hidden[0, :4], whole.hidden[0])
    torch.testing.assert_close(packed.hidden[0, 4:], whole.hidden[1, :2])


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_are_those_of_rows_one_by_one(window):
    """Of attention over documents, both ways, grouped queries and a sliding window included."""
    torch.manual_seed(0)
    config = TransformerConfig(1, 16, 4, kv_heads=2, context=window)
    layer = Decoder(config).transformer.layers[0].attention
    sizes = [5, 1, 9, 2, 9, 3]
    x, weights = torch.randn(1, sum(sizes), 16), torch.randn(sum(sizes), 16)
    expected, starts = [], [sum(sizes[:n]) for n in range(len(sizes))]
    for start, size in zip(starts, sizes):
        expected.append(layer(x[:, start : start + size])[0])
    names, parameters = zip(*layer.named_parameters())
    theirs = torch.autograd.grad((torch.cat(expected) * weights).sum(), parameters)
    for way in (False, True):
        documents = Documents([*sizes, 0], together=way)
        rotation = layer.rope(documents.positions("cpu"))
        y = layer(x, rotation=rotation, documents=documents)[0]
        torch.testing.assert_close(y, torch.cat(expected), atol=1e-6, rtol=1e-5)
        for name, one, other in zip(names, torch.autograd.grad((y * weights).sum(), parameters), theirs):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, msg=name)


def test_documents_that_do_not_fit_are_refused():
    decoder = Decoder(TransformerConfig(1, 16, 2))
    with pytest.raises(RequestError, match="documents of 7 frames in a signal of 8"):
        decoder(torch.zeros(1, 8, 16), documents=[3, 4])
    with pytest.raises(RequestError, match="without lengths, mask, prefix or memory"):
        decoder(torch.zeros(1, 8, 16), torch.tensor([8]), documents=[4, 4])
