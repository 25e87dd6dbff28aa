"""Layouts to be tested with any lengths: every kind, alone and in company, and what it is given."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st

from vivavoce.layouts import END, Given, Layout, StreamSpec, build_layout

SNAC = (1, 2, 4)


@dataclass
class Case:
    """A specification with its streams. words, turns, chunks, values: what it has to be given."""

    name: str
    spec: dict[str, Any]
    streams: list[StreamSpec]
    words: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    chunks: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    core: dict[str, Any] = field(default_factory=dict)  # what a template is put around, else spec
    layout: Layout = field(init=False)

    def __post_init__(self):
        self.core = self.core or self.spec
        self.layout = build_layout(self.spec, self.streams)


def stream(name, levels=1, rate=None, ratios=None, **more) -> StreamSpec:
    return StreamSpec(name, levels, rate, ratios, **more)


TEXT, VOICE, USER = stream("text"), stream("voice", 3, 12.5), stream("user", 2, 12.5, given=True)
UNITS, OTHER = stream("units", rate=25), stream("other", rate=25)
MOSHI_DELAYS = {"text": 0, "voice": [0, 1, 1], "user": [0, 1]}
GRID = [stream("text", rate=12.5), VOICE, USER]

CASES = [
    Case("flat", {"kind": "flat"}, [TEXT, VOICE]),
    Case("flat by time", {"kind": "flat", "by": "time"}, [stream("slow", 2, 10), stream("fast", 1, 25)]),
    Case("flat snac", {"kind": "flat", "positions": "stream"}, [stream("voice", 3, 12, SNAC)]),
    Case("parallel", {"kind": "parallel"}, [VOICE]),
    Case("parallel snac lanes", {"kind": "parallel", "clock": "frame"}, [stream("voice", 3, 12, SNAC)]),
    Case("parallel snac columns", {"kind": "parallel"}, [stream("voice", 3, 12, SNAC)]),
    Case("delay", {"kind": "delay"}, [stream("voice", 4, 50)]),
    Case("delay snac", {"kind": "delay", "clock": "frame"}, [stream("voice", 3, 12, SNAC)]),
    Case("delay partly flattened", {"kind": "delay", "stride": 2, "delays": {"voice": [0, 1, 1]}}, [VOICE]),
    Case("multi-stream", {"kind": "multi-stream", "delays": MOSHI_DELAYS}, GRID),
    Case("multi-stream, clocks 3:2", {"kind": "multi-stream"}, [stream("a", rate=75), stream("b", rate=50)]),
    Case("multi-stream, clocks 1:2", {"kind": "multi-stream"}, [stream("a", 2, 12.5), stream("b", rate=25)]),
    Case("multi-stream at 10 Hz", {"kind": "multi-stream", "clock": 10.0}, [stream("a", rate=25), stream("b", rate=4)]),
    Case("interleaved", {"kind": "interleaved", "text": 2, "voice": 3}, [TEXT, VOICE]),
    Case("interleaved with turn", {"kind": "interleaved", "text": 2, "voice": 3, "turn": 7}, [TEXT, VOICE]),
    Case("interleaved words", {"kind": "interleaved", "by": "words", "words": ["text", "voice"], "span": 2,
                               "tags": {"text": 1, "voice": 2}}, [TEXT, stream("voice")], words=("text", "voice")),
    Case("chain", {"kind": "chain-of-modality", "tags": {"text": 3}, "close": 5}, [USER, TEXT, VOICE]),
    Case("hierarchical", {"kind": "hierarchical", "order": ["units", "voice[:2]", "voice[2:]"], "positions": "segment"},
         [UNITS, VOICE]),
    Case("hierarchical snac", {"kind": "hierarchical"}, [stream("voice", 3, 8, (1, 2, 6))]),
    Case("text-aligned", {"kind": "text-aligned"}, [TEXT, VOICE], words=("text", "voice")),
    Case("text-aligned, advanced", {"kind": "text-aligned", "words": True, "advance": 2, "close": 9}, [TEXT, VOICE],
         words=("text", "voice")),
    Case("text-aligned columns", {"kind": "text-aligned", "form": "columns", "delays": {"voice": 1}},
         [TEXT, stream("voice", 4)]),
    Case("time-multiplexed", {"kind": "time-multiplexed", "sizes": {"user": 4, "text": 1, "voice": 3},
                              "tags": {"user": 1, "text": 2}}, [USER, TEXT, VOICE]),
    Case("time-multiplexed, given", {"kind": "time-multiplexed", "sizes": {"user": 2, "voice": "given"},
                                     "tags": {"voice": 1}}, [USER, VOICE], chunks=("voice",)),
    Case("time-multiplexed, dedup", {"kind": "time-multiplexed", "order": ["units", "other"], "chunk": 0.16,
                                     "dedup": ["units", "other"], "tags": {"units": 0, "other": 1}}, [UNITS, OTHER],
         values=("units", "other")),
    Case("dedup", {"kind": "dedup"}, [UNITS, VOICE], values=("units",)),
    Case("dedup interleaved", {"kind": "dedup", "inner": {"kind": "interleaved", "units": 1, "other": 2}},
         [UNITS, OTHER], values=("units", "other")),
    Case("dedup multi-stream", {"kind": "dedup", "inner": {"kind": "multi-stream", "delays": {"other": 1}}},
         [UNITS, OTHER], values=("units", "other")),
    Case("template", {"kind": "template", "literals": {"sos": 1, "turn": 2}, "order": ["sos", "text", "turn", "voice"]},
         [TEXT, VOICE]),
    Case("template of grids", {"kind": "template", "order": [
        {"literal": [1, None, 2]}, "text", {"kind": "delay", "streams": ["voice"]}, 3]}, [TEXT, VOICE]),
    Case("template, own lanes", {"kind": "template", "lanes": "own", "order": [
        "text", {"kind": "parallel", "streams": ["voice[1:]"]}, 4, "voice[0]"]}, [TEXT, VOICE]),
    Case("template with turns", {"kind": "template", "order": [0, {"turns": [
        1, "user", {"literal": 2, "loss": True}, {"kind": "interleaved", "text": 1, "voice": 2}]}, 9]},
         [USER, TEXT, VOICE], turns=("user", "text", "voice")),
    Case("template, turns of chunks", {"kind": "template", "order": [{"turns": [
        {"kind": "time-multiplexed", "user": 2, "voice": 1, "tags": {"user": 3}}, 5]}]},
         [USER, VOICE], turns=("user", "voice")),
    Case("template, turns of units", {"kind": "template", "order": [{"turns": [
        {"kind": "dedup", "streams": ["units"]}, 5, {"kind": "delay", "streams": ["voice"]}]}]},
         [stream("units", rate=25), VOICE], turns=("units", "voice")),
    Case("VALL-E", {"kind": "template", "positions": "segment", "order": [
        "text", "voice[0]", {"kind": "parallel", "streams": ["voice[1:]"]}]}, [TEXT, VOICE]),
]

# Every case between two literals: no kind may count on beginning or ending the sequence.
WRAPPED = [
    replace(
        case,
        name=f"{case.name}, in a template",
        spec={"kind": "template", "order": [11, case.spec, 12]}
        | {key: case.spec[key] for key in ("literals", "lanes", "positions") if key in case.spec},  # of the whole
    )
    for case in CASES
]


@dataclass
class Drawn:
    """A layout with lengths, givens and a seed."""

    case: Case
    lengths: dict[str, torch.Tensor]
    given: Given
    seed: int
    batch: int


@st.composite
def drawn(draw, case: Case, batch: int = 3, longest: int = 9) -> Drawn:
    """Lengths from 0, with whatever the case needs to be given."""
    counts, values, lengths, known = {}, {}, {}, {}
    number = st.integers(0, longest)
    for spec in case.streams:
        if draw(st.booleans()) or spec.name in (*case.words, *case.turns, *case.chunks):
            lengths[spec.name] = torch.tensor(draw(st.lists(number, min_size=batch, max_size=batch)))
        else:
            rows = st.lists(number, min_size=spec.levels, max_size=spec.levels)
            lengths[spec.name] = torch.tensor(draw(st.lists(rows, min_size=batch, max_size=batch)))
        if draw(st.integers(0, 3)) == 0:
            known[spec.name] = torch.tensor(draw(st.lists(number, min_size=batch, max_size=batch)))
    for kind, names in (("word", case.words), ("turn", case.turns), ("chunk", case.chunks)):
        if not names:
            continue
        segments = [draw(st.integers(1, 4)) for _ in range(batch)]
        for name in names:
            table = torch.full((batch, max(segments)), END)
            for row, size in enumerate(segments):
                low = 1 if kind == "word" and name == "text" else 0
                table[row, :size] = torch.tensor(draw(st.lists(st.integers(low, 4), min_size=size, max_size=size)))
            if kind == "word" and name == "text" and case.core["kind"] == "text-aligned" and not case.core.get("words"):
                table = table.clamp(max=1)
            counts[f"{kind}/{name}"] = table
            lengths[name] = table.clamp(min=0).sum(1)
    for name in case.values:
        values[name] = torch.tensor(draw(st.lists(st.lists(st.integers(0, 2), min_size=40, max_size=40),
                                                  min_size=batch, max_size=batch)))
    return Drawn(case, lengths, Given(values, counts, known), draw(st.integers(0, 99)), batch)
