"""Specifications: what is refused, and how the error says where."""

import pytest
import torch

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import KINDS, StreamSpec, build_layout, show
from vivavoce.layouts.cells import parse_slice

STREAMS = [StreamSpec("text"), StreamSpec("voice", 4, 12.5)]


@pytest.mark.parametrize("spec, message", [
    ({}, "no 'kind'"),
    ({"kind": "spiral"}, "no layout 'spiral'; one of"),
    ({"kind": "flat", "stream": ["text"]}, "layout.stream: Extra inputs"),
    ({"kind": "flat", "streams": ["mel"]}, "'mel' names no stream"),
    ({"kind": "flat", "streams": ["voice[7]"]}, "has no level: stream 'voice' has 4"),
    ({"kind": "delay", "delays": {"mel": 1}}, "layout.delays: \\['mel'\\]"),
    ({"kind": "delay", "delays": {"voice": [0, 1]}}, "2 delays for 4 levels in 4 lanes"),
    ({"kind": "multi-stream", "delays": {"voice": -1}}, "a delay is negative"),
    ({"kind": "parallel", "stride": 0}, "layout.stride: .*found 0"),
    ({"kind": "parallel", "clock": "slow"}, "layout.clock"),
    ({"kind": "interleaved"}, "layout.sizes"),
    ({"kind": "interleaved", "text": 0}, "at least one frame"),
    ({"kind": "interleaved", "text": 1, "voice": 1, "turn": "turn"}, "no literal 'turn'"),
    ({"kind": "interleaved", "by": "words"}, "name the two streams"),
    ({"kind": "interleaved", "text": 1, "tags": {"mel": 1}}, "layout.tags: \\['mel'\\]"),
    ({"kind": "template", "order": []}, "layout.order"),
    ({"kind": "template", "order": ["sos", "text"]}, "'sos' names no stream"),
    ({"kind": "template", "order": [{"literal": "sos"}]}, "layout.order\\[0\\]: no literal 'sos'"),
    ({"kind": "template", "order": [{"literal": 1, "los": 1}]}, "unknown keys \\['los'\\]"),
    ({"kind": "template", "order": [{"turns": [1]}]}, "no stream takes part"),
    ({"kind": "template", "order": [{"turns": [{"turns": ["text"]}]}]}, "turns do not nest"),
    ({"kind": "template", "order": [{"turns": [{"kind": "time-multiplexed", "sizes": {"text": "given"}}]}]},
     "\\['text'\\] are cut into turns; then chunks"),
    ({"kind": "time-multiplexed", "chunk": 0.1, "order": ["voice"]}, "0.1 s are 1.25 frames"),
    ({"kind": "time-multiplexed", "chunk": 0.16, "order": ["text"]}, "'text' has no rate"),
    ({"kind": "time-multiplexed", "voice": 2, "dedup": ["voice"]}, "needs one level"),
    ({"kind": "dedup", "streams": ["voice"]}, "only single units can repeat"),
    ({"kind": "flat", "lanes": "many"}, "layout.lanes"),
    ({"kind": "flat", "positions": "clock"}, "layout.positions"),
])
def test_wrong_specifications_say_where(spec, message):
    with pytest.raises(RecipeError, match=message):
        build_layout(spec, STREAMS)


def test_wrong_streams():
    with pytest.raises(RecipeError, match="share a name"):
        build_layout({"kind": "flat"}, [StreamSpec("text"), StreamSpec("text")])
    with pytest.raises(RequestError, match="0 levels"):
        StreamSpec("text", 0)
    with pytest.raises(RequestError, match="rate 0 Hz"):
        StreamSpec("text", rate=0)
    with pytest.raises(RequestError, match="ratios"):
        StreamSpec("voice", 3, 12, (1, 2))


def test_kind_is_spelled_with_or_without_hyphen():
    kinds = ("multi-stream", "multistream", "Multi_Stream")
    assert len({build_layout({"kind": kind}, STREAMS).fingerprint for kind in kinds}) == 1
    assert len(KINDS) >= 10


def test_slices():
    voice = STREAMS[1]
    for text, levels in (("voice", [0, 1, 2, 3]), ("voice[1:]", [1, 2, 3]), ("voice[:2]", [0, 1]), ("voice[2]", [2]),
                         ("voice[-1]", [3]), ("voice[-2:]", [2, 3]), ("voice[1:3]", [1, 2]), ("voice[0]", [0])):
        assert parse_slice(text, STREAMS) == (voice, levels)


def test_lengths_are_checked():
    layout = build_layout({"kind": "delay", "streams": ["voice"]}, STREAMS)
    assert layout.dropped == {"text": "has no place in this layout"}
    for wrong in (torch.zeros(2, 3), torch.tensor([[-1, 0, 0, 0]]), torch.tensor([-2])):
        with pytest.raises(RequestError, match="length"):
            layout.place({"voice": wrong})
    with pytest.raises(RequestError, match="no stream \\['mel'\\]"):
        layout.place({"voice": torch.tensor([1]), "mel": torch.tensor([1])})
    with pytest.raises(RequestError, match="no one lane"):
        layout.lane_of("text")


def test_values_and_vectors_move_alike():
    layout = build_layout({"kind": "delay"}, [StreamSpec("voice", 2, 50)])
    places = layout.place({"voice": torch.tensor([3, 1])})
    vectors = torch.randn(2, 2, 3, 5)
    index = places.index_grid()
    grid = torch.zeros(*index.shape[:3], 5)
    there = index[..., 0] >= 0
    row = torch.arange(2)[:, None, None].expand(there.shape)
    grid[there] = vectors[row[there], index[..., 1][there], index[..., 2][there]]
    back = places.invert(grid, fill=0)["voice"]
    assert back.shape == vectors.shape
    assert torch.equal(back[0], vectors[0]) and torch.equal(back[1, :, :1], vectors[1, :, :1])
    assert bool((back[1, :, 1:] == 0).all())
    with pytest.raises(RequestError, match="values of 'voice' have 2 cells, the layout needs 3"):
        places.grid({"voice": torch.zeros(2, 2, 2, dtype=torch.int64)})


def test_blank_of_every_lane():
    layout = build_layout({"kind": "delay"}, [StreamSpec("voice", 2, 50)])
    grid = layout.place({"voice": torch.tensor([1])}).grid({"voice": torch.tensor([[[5], [6]]])}, blank=[7, 8])
    assert grid.tolist() == [[[5, 7], [8, 6]]]


def test_show():
    layout = build_layout({"kind": "template", "order": [3, "text", {"kind": "delay", "streams": ["voice[:2]"]}]},
                          [StreamSpec("text", given=True), StreamSpec("voice", 4, 12.5)])
    places = layout.place({"text": torch.tensor([1]), "voice": torch.tensor([2])})
    assert show(places) == (
        "<3>   t.0   v0.0* v0.1* .\n"
        ".     .     .     v1.0* v1.1*"
    )
