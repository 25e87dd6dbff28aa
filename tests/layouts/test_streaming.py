"""The streaming form on its own: end tokens, late limits, given cells, open streams."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.layouts import END, OPEN, PADDING, Given, StreamSpec, build_layout

FIELDS = ("stream", "level", "index", "position", "loss")
TEXT, VOICE = StreamSpec("text", end=9), StreamSpec("voice", 3, 12.5, end=9)
SNAC = StreamSpec("voice", 3, 12, (1, 2, 4), end=9)


def speak(layout, lengths, given=None):
    """Fill an open layout with zeros and, where the lengths say so, end tokens: the columns that come."""
    batch = len(next(iter(lengths.values())))
    values = {}
    for spec in layout.streams:
        values[spec.name] = torch.zeros(batch, spec.levels, 99, dtype=torch.int64)
        for row, frames in enumerate(lengths[spec.name].tolist()):
            values[spec.name][row, 0, frames * spec.cells(0) - 1] = 9
    state, filled, columns = layout.start(batch, given=given), None, []
    for _ in range(200):
        column, state = layout.next(filled, state)
        if bool(column.done.all()):
            return columns
        columns.append(column)
        filled = torch.full((batch, layout.lanes), -1)
        for row in range(batch):
            for lane in range(layout.lanes):
                stream, level, index = (int(getattr(column, f)[row, lane]) for f in ("stream", "level", "index"))
                if stream >= 0:
                    filled[row, lane] = values[layout.streams[stream].name][row, level, index]
    raise AssertionError("no end")


@pytest.mark.parametrize("spec, streams", [
    ({"kind": "flat"}, [TEXT, VOICE]),
    ({"kind": "flat"}, [SNAC]),
    ({"kind": "parallel"}, [VOICE]),
    ({"kind": "parallel"}, [TEXT, SNAC]),
    ({"kind": "delay"}, [TEXT, VOICE]),
    ({"kind": "delay", "clock": "frame"}, [SNAC]),
    ({"kind": "multi-stream", "delays": {"voice": [0, 2, 1]}}, [TEXT, VOICE]),
    ({"kind": "interleaved", "text": 2, "voice": 3}, [TEXT, VOICE]),
    ({"kind": "interleaved", "text": 2, "voice": 3}, [TEXT, StreamSpec("voice", end=9)]),
    ({"kind": "chain-of-modality", "tags": {"voice": 1}, "close": 2}, [TEXT, VOICE]),
    ({"kind": "hierarchical", "order": ["text", "voice[:1]", "voice[1:]"]}, [TEXT, VOICE]),
    ({"kind": "template", "order": [4, "text", 5, {"kind": "delay", "streams": ["voice"]}, 6]}, [TEXT, VOICE]),
    ({"kind": "dedup", "inner": {"kind": "interleaved", "text": 1, "units": 1}},
     [TEXT, StreamSpec("units", end=9)]),
])
def test_an_end_token_ends_a_stream_as_its_length_would(spec, streams):
    """Without lengths, told only what was filled: the same places as offline with the lengths (the end counted)."""
    layout = build_layout(spec, streams)
    lengths = {s.name: torch.tensor([[4, 1, 6], [2, 5, 1]][i]) for i, s in enumerate(streams)}
    given = None
    if spec["kind"] == "dedup":  # offline nothing may repeat, as nothing does in what is generated
        given = Given(values={s.name: torch.arange(99).expand(3, 99) for s in streams})
    places = layout.place(lengths, given)
    columns = speak(layout, lengths)
    assert len(columns) == int(places.columns.max())
    for n, column in enumerate(columns):
        for field in FIELDS:
            assert torch.equal(getattr(column, field), places.mask(field)[:, :, n]), (n, field)


def test_levels_ahead_of_the_end_token_keep_what_they_have():
    """Where level 0 is the late one, the others have gone on when it says that the stream has ended."""
    layout = build_layout({"kind": "multi-stream", "delays": {"voice": [2, 0, 1]}}, [VOICE])
    columns = speak(layout, {"voice": torch.tensor([4, 1])})
    for row, frames in enumerate((4, 1)):
        stood = torch.stack([column.stream[row] == 0 for column in columns], dim=1)
        assert stood.sum(1).tolist() == [frames, frames + 2, frames + 1]


def test_the_model_ends_its_piece_of_a_chunk_and_not_its_stream():
    """Time-multiplexed with pieces of the model's own length: its end token hands over to the next chunk."""
    streams = [StreamSpec("user", given=True), StreamSpec("voice", end=9)]
    layout = build_layout({"kind": "time-multiplexed", "sizes": {"user": 2, "voice": "given"}}, streams)
    state, filled, heard = layout.start(1), None, []
    for n in range(12):
        column, state = layout.next(filled, state)
        heard.append("uv"[int(column.stream)] + str(int(column.index)))
        filled = torch.tensor([[9 if n in (2, 7) else 0]])
    assert heard == "u0 u1 v0 u2 u3 v1 v2 v3 u4 u5 v4 v5".split()


@pytest.mark.parametrize("size", [1, "given"])
def test_chunks_end_when_every_stream_has(size):
    streams = [StreamSpec("user", given=True, end=9), StreamSpec("voice", end=9)]
    layout = build_layout({"kind": "time-multiplexed", "sizes": {"user": 2, "voice": size}}, streams)
    given = Given(counts={"chunk/voice": torch.tensor([[1, 1, 1]])})
    state, filled, seen = layout.start(1, {"voice": torch.tensor([3])}, given), None, []
    for n in range(20):
        column, state = layout.next(filled, state)
        if bool(column.done):
            break
        seen.append("uv"[int(column.stream)] + str(int(column.index)))
        filled = torch.tensor([[9 if n == 4 else 0]])
    assert seen == "u0 u1 v0 u2 u3 v1 v2".split()


def test_each_phone_ends_with_its_own_end_token():
    streams = [StreamSpec("text", given=True), StreamSpec("voice", end=9)]
    layout = build_layout({"kind": "text-aligned"}, streams)
    state, filled, said = layout.start(1, {"text": torch.tensor([2])}), None, []
    for n in range(20):
        column, state = layout.next(filled, state)
        if bool(column.done):
            break
        said.append("tv"[int(column.stream)] + str(int(column.index)))
        filled = torch.tensor([[9 if n in (2, 4) else 0]])
    assert said == "t0 v0 v1 t1 v2".split()


def test_a_limit_that_is_known_late():
    """Text that comes in while the voice is spoken: its length is told when it has ended."""
    layout = build_layout({"kind": "interleaved", "text": 2, "voice": 2},
                          [StreamSpec("text", given=True), StreamSpec("voice", end=9)])
    state, seen = layout.start(2), []
    for n in range(9):
        if n == 4:
            state = layout.limit(state, {"text": torch.tensor([3, 99])}, rows=torch.tensor([True, False]))
        column, state = layout.next(None, state)
        seen.append("tv"[int(column.stream[0])] + "tv"[int(column.stream[1])])
    assert [pair[0] for pair in seen] == list("ttvvtvvvv")
    assert [pair[1] for pair in seen] == list("ttvvttvvt")
    with pytest.raises(RequestError, match=r"no stream \['mel'\]"):
        layout.limit(state, {"mel": torch.tensor([3, 3])})


def test_known_cells_are_given_and_carry_no_loss():
    """Leading frames (a prompt) or any mask of frames (infilling)."""
    layout = build_layout({"kind": "delay"}, [StreamSpec("voice", 2, 50)])
    lengths = {"voice": torch.tensor([4, 4])}
    prompt = layout.place(lengths, Given(known={"voice": torch.tensor([3, 0])}))
    assert prompt.mask()[0].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert prompt.mask()[1].tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    holes = torch.tensor([[True, False, False, True], [False, False, False, False]])
    masked = layout.place(lengths, Given(known={"voice": holes}))
    assert masked.mask()[0].tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]
    state = layout.start(2, lengths, Given(known={"voice": holes}))
    column, state = layout.next(None, state)
    assert column.given.tolist() == [[True, False], [False, False]]
    assert column.fill.tolist() == [[False, False], [True, False]]


def test_duplex_never_ends_and_a_row_can_be_reset():
    layout = build_layout({"kind": "multi-stream"}, [StreamSpec("text"), StreamSpec("user", given=True)])
    state = layout.start(3)
    for _ in range(50):
        column, state = layout.next(None, state)
    state = state.where(torch.tensor([False, True, False]), layout.start(3))
    column, state = layout.next(None, state)
    assert column.index[:, 0].tolist() == [50, 0, 50]
    assert not bool(column.done.any())


def test_put_pads_tables_of_different_width():
    streams = [StreamSpec("text", given=True), StreamSpec("voice")]
    layout = build_layout({"kind": "text-aligned"}, streams)

    def begin(*counts):
        table = Given(counts={"word/voice": torch.tensor([counts])})
        return layout.start(1, {"text": torch.tensor([len(counts)]), "voice": torch.tensor([sum(counts)])}, table)

    state = layout.put(layout.put(begin(1), [0], begin(1, 2, 1)), [0], begin(2))
    seen = []
    for _ in range(4):
        column, state = layout.next(None, state)
        seen.append(int(column.stream))
    assert seen == [0, 1, 1, PADDING] and bool(column.done)


def test_filled_of_the_wrong_shape_is_refused():
    layout = build_layout({"kind": "flat"}, [TEXT])
    _, state = layout.next(None, layout.start(2))
    with pytest.raises(RequestError, match="one value for each lane"):
        layout.next(torch.zeros(2, 3, dtype=torch.int64), state)


def test_open_counts_offline_are_refused():
    layout = build_layout({"kind": "flat"}, [TEXT])
    with pytest.raises(RequestError, match="no lengths for \\['text'\\]"):
        layout.place({})
    with pytest.raises(RequestError, match="is open"):
        layout.place({"text": torch.tensor([OPEN])})


def test_counts_that_do_not_cover_a_stream_are_refused():
    layout = build_layout({"kind": "text-aligned"}, [StreamSpec("text"), StreamSpec("voice")])
    given = Given(counts={"word/voice": torch.tensor([[2, 2], [2, END]])})
    lengths = {"text": torch.tensor([2, 2]), "voice": torch.tensor([4, 2])}
    with pytest.raises(RequestError, match=r"row 1: .* 1 of 2 cells of 'text\[0\]'"):
        layout.place(lengths, given)
    with pytest.raises(RequestError, match=r"needs given.counts\['word/voice'\]"):
        layout.place(lengths)
