"""What hears whole signals, over signals of any length: in pieces, each with some context on both sides.

Memory does not grow with the signal, and what a piece gives does not depend on how the signal comes: in one tensor, or
in chunks of any size. A signal of at most a piece and its context is heard whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vivavoce.nn.streaming import State, gathered, lengths_of, slice_rows


class PieceStream:
    """A stream of pieces: `answer` hears inputs [n, D] whole, beginning with a state of one row (None: there is none),
    and gives outputs [T, ...].

    size, around: of a piece, and of the context on each side, in cells of `hop` inputs that give `outputs` outputs.
    nothing: outputs [0, ...]. most: how many inputs give no more than so many cells (None: `hop` for each).
    """

    def __init__(
        self,
        answer: Callable[[Tensor, State | None], Tensor],
        size: int,
        around: int,
        hop: int,
        outputs: int,
        nothing: Tensor,
        most: Callable[[int], int] | None = None,
    ):
        self.answer, self.size, self.around, self.hop, self.outputs = answer, size, around, hop, outputs
        self.nothing, self.most = nothing, most or (lambda cells: cells * hop)

    @property
    def longest(self) -> int:
        """Inputs of the longest signal that is heard whole."""
        return self.most(self.size + self.around)

    def initial_state(self, waiting: Tensor, begin: State | None = None) -> State:
        """`waiting` [B, N, D] (none yet): the inputs from cell `start` [B] on, `held` [B] of them; `given` [B] outputs;
        `begin`: what every piece begins with."""
        zero = torch.zeros(len(waiting), dtype=torch.int64, device=waiting.device)
        state = State(waiting=waiting, held=zero, start=zero, given=zero, emitted=zero)
        return state if begin is None else State({**state, "begin": begin})

    def step(self, x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """A chunk [B, S, D] -> outputs [B, T, ...] of the pieces that it completes, `emitted` [B] of each row.

        A piece is complete when more has come than it and the context behind it.
        """
        waiting, held = gathered(state["waiting"], state["held"], x, lengths_of(x, lengths))
        return self._given(State({**state, "waiting": waiting, "held": held}), torch.zeros_like(held, dtype=torch.bool))

    def flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the outputs that are left."""
        ends = torch.ones_like(state["held"], dtype=torch.bool) if rows is None else rows.to(state["held"].device)
        return self._given(state, ends)

    def _given(self, state: State, ends: Tensor) -> tuple[Tensor, State]:
        """What there is to give of every row; of those that `ends`, all."""
        found: list[Tensor] = []
        held, start, given = (state[name].clone() for name in ("held", "start", "given"))
        dropped = torch.zeros_like(held)
        for row in range(len(held)):
            out, at = [self.nothing.to(held.device)], 0
            signal = state["waiting"][row, : int(held[row])]
            begins = state["begin"].take([row]) if "begin" in state else None
            while True:
                begin = int(start[row])
                first = int(given[row]) // self.outputs - begin
                behind = first + self.size
                if len(signal) - at <= self.most(behind + self.around):
                    break
                heard = self.answer(signal[at : at + self.most(behind + self.around)], begins)
                out.append(heard[first * self.outputs : behind * self.outputs])
                start[row] = max(0, begin + behind - self.around)
                at += int(start[row] - begin) * self.hop
                given[row] += len(out[-1])
            if bool(ends[row]):
                if len(signal) - at > self.most(first):
                    out.append(self.answer(signal[at:], begins)[first * self.outputs :])
                    given[row] += len(out[-1])
                at = len(signal)
            dropped[row] = at
            found.append(torch.cat(out))
        left = held - dropped
        waiting = slice_rows(state["waiting"], dropped, int(left.max()) if len(left) else 0)
        values = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        after = {"waiting": waiting, "held": left, "start": start, "given": given, "emitted": given - state["given"]}
        return values, State({**state, **after})
