"""Modules that hear a whole signal before they answer: it is gathered as it comes, and answered when it ends."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.parallel import Sum
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import INFINITE, State, Streaming, gathered, lengths_of, zero_padding


class WholeSignal(Streaming):
    """Base: a subclass gives `inputs`, `width` and `respond`, and `frames` where it changes their number.

    What it hears waits in the state, so a stream says nothing until its end, and then what the whole signal gives.
    """

    lookahead = INFINITE
    receptive_field = INFINITE
    inputs: int

    def respond(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Whole signals x [B, T, inputs], zero beyond lengths [B] -> [B, max frames(lengths) or more, width]; what
        stands beyond a row's length must not change the row."""
        raise NotImplementedError

    def initial_state(self, batch, device=None, dtype=None):
        """`waiting` [B, N, inputs], of which `held` [B] frames are valid."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(waiting=torch.zeros(batch, 0, self.inputs, **home), held=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        waiting, held = gathered(state["waiting"], state["held"], x, lengths_of(x, lengths))
        return x.new_zeros(len(x), 0, self.width), State(waiting=waiting, held=held, emitted=torch.zeros_like(held))

    def flush(self, state, rows=None):
        """The answer to all that was heard."""
        held = state["held"] if rows is None else state["held"] * rows.to(state["held"].device)
        most = int(held.max()) if held.numel() else 0
        if most == 0:
            return self.nothing(state)
        x = zero_padding(state["waiting"][:, :most], held)
        return self.respond(x, held), State({**state, "emitted": self.frames(held)})


class WholeResidual(WholeSignal):
    """x + inner(x), for an `inner` that answers at the end of the signal with as many frames."""

    def __init__(self, inner: Streaming):
        super().__init__()
        if inner.hop != 1:
            raise RequestError("a residual needs an inner module of the same rate")
        self.inner, self.inputs = inner, inner.width

    @property
    def width(self):
        return self.inputs

    def respond(self, x, lengths):
        return x + self.inner(x, lengths)


def residual(inner: Streaming) -> Streaming:
    """x + inner(x): as a stream where `inner` allows it, else at the end of the signal."""
    return WholeResidual(inner) if inner.lookahead == INFINITE else Residual(inner)


class WholeSum(WholeSignal):
    """branch_1(x) + branch_2(x) + …, for branches that answer at the end of the signal."""

    def __init__(self, branches: Sequence[Streaming], inputs: int):
        super().__init__()
        self.branches, self.inputs = nn.ModuleList(branches), inputs

    @property
    def width(self):
        return self.branches[0].width

    def frames(self, length):
        return self.branches[0].frames(length)  # type: ignore[operator]

    def respond(self, x, lengths):
        answers = [branch(x, lengths) for branch in self.branches]
        return torch.stack(answers).sum(0)


def side_by_side(branches: Sequence[Streaming], inputs: int) -> Streaming:
    """The sum of branches that hear the same frames: as a stream where they allow it, else at the end of the signal."""
    whole = any(branch.lookahead == INFINITE for branch in branches)
    return WholeSum(branches, inputs) if whole else Sum(branches)
