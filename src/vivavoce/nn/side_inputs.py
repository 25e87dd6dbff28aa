"""Stages that hear more than the stage before has made of a signal: each is told something of the signal itself."""

from collections.abc import Sequence

from torch import nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, join_rows, lengths_of


class SideInputs(Streaming):
    """Frames [B, T, D] -> first -> + sides[0] -> stages[0] -> + sides[1] -> stages[1] …, the sides over the frames
    themselves.

    A side gives the frames that it is added to, as many and at the same time; nothing looks ahead.
    """

    sides: Sequence[Streaming]
    stages: Sequence[Streaming]

    def __init__(self, first: Streaming, sides: Sequence[Streaming], stages: Sequence[Streaming]):
        super().__init__()
        if len(sides) != len(stages) or not stages:
            raise RequestError(f"{len(sides)} side inputs for {len(stages)} stages: one each is needed")
        hop, width = first.hop, first.width
        for side, stage in zip(sides, stages):
            if (side.hop, side.width) != (hop, width) or max(side.lookahead, stage.lookahead, first.lookahead) > 0:
                raise RequestError(f"a side input of hop {side.hop} and width {side.width}: {hop} and {width} without "
                                   "look-ahead are needed")  # fmt: skip
            hop, width = hop * stage.hop, stage.width
        self.first = first
        self.sides, self.stages = nn.ModuleList(sides), nn.ModuleList(stages)  # type: ignore[assignment]
        self.hop = hop
        self.chunk, self.warmup = int(hop), self.inputs_for(1)
        self.receptive_field = max(-self.needs(0, 0)[0], 0)

    @property
    def width(self):
        return self.stages[-1].width

    def inputs_for(self, outputs):
        for stage in reversed(list(self.stages)):
            outputs = stage.inputs_for(outputs)
        return self.first.inputs_for(outputs)

    def needs(self, first, last):
        reach = []
        for side, stage in reversed(list(zip(self.sides, self.stages))):
            first, last = stage.needs(first, last)
            reach.append(side.needs(first, last))
        reach.append(self.first.needs(first, last))
        return min(early for early, _ in reach), max(late for _, late in reach)

    def frames(self, length):
        length = self.first.frames(length)
        for stage in self.stages:
            length = stage.frames(length)
        return length

    def initial_state(self, batch, device=None, dtype=None):
        device = self.home(device, dtype)["device"]
        state = State(first=self.first.initial_state(batch, device, dtype))
        for i, (side, stage) in enumerate(zip(self.sides, self.stages)):
            state[f"side{i}"] = side.initial_state(batch, device, dtype)
            state[f"stage{i}"] = stage.initial_state(batch, device, dtype)
        state["emitted"] = state["first"].emitted
        return state

    def step(self, x, state, lengths=None):
        lengths, after = lengths_of(x, lengths), State()
        y, after["first"] = self.first.step(x, state["first"], lengths)
        last = after["first"]
        for i, (side, stage) in enumerate(zip(self.sides, self.stages)):
            beside, after[f"side{i}"] = side.step(x, state[f"side{i}"], lengths)
            y, after[f"stage{i}"] = stage.step(y + beside[:, : y.shape[1]], state[f"stage{i}"], last.emitted)
            last = after[f"stage{i}"]
        return y, State({**after, "emitted": last.emitted})

    def flush(self, state, rows=None):
        """As `Chain` has it, with what the sides release at the end."""
        after = State()
        y, after["first"] = self.first.flush(state["first"], rows)
        lengths = after["first"].emitted
        for i, (side, stage) in enumerate(zip(self.sides, self.stages)):
            beside, after[f"side{i}"] = side.flush(state[f"side{i}"], rows)
            most = int(lengths.max()) if len(lengths) else 0
            heard, middle = stage.step(y[:, :most] + beside[:, :most], state[f"stage{i}"], lengths)
            rest, after[f"stage{i}"] = stage.flush(middle, rows)
            y, lengths = join_rows([(heard, middle.emitted), (rest.to(heard.dtype), after[f"stage{i}"].emitted)])
        return y, State({**after, "emitted": lengths})
