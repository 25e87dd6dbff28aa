"""Where the tensors of a published format stand in ours, told once: reading and writing walk the same pairs of names.

A format is a sequence of `Pair`. Weight normalisation is fused when it is read, and made anew where what reads the
written file expects it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.weight_norm import length_and_direction, parametrized

# Of a codebook in training only; of positions, transforms and filters, what is computed.
IGNORED = ("embed_avg", "inited", "initialized", "_initialized", "inv_freq", "window", "filter")


@dataclass(frozen=True)
class Pair:
    """Our tensor `ours`, and theirs: it has one of the names `theirs` (the first, where it is written).

    rows: the names are those of several tensors, which stand below one another in ours, so many rows each. before,
    behind: axes of one value that theirs has around ours. normed: a convolution's, of length and direction where the
    format has weight normalisation.
    """

    ours: str
    theirs: Sequence[str]
    rows: Sequence[int] = ()
    before: int = 0
    behind: int = 0
    normed: bool = False


def weight_and_bias(ours: str, theirs: str, bias: bool = True) -> Iterable[Pair]:
    """The pairs of a module that has both, or a weight alone."""
    return [Pair(f"{ours}.{kind}", [f"{theirs}.{kind}"]) for kind in (("weight", "bias") if bias else ("weight",))]


class Published:
    """Tensors of a checkpoint, taken one by one by their names; weight normalisation is fused on the way."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self.tensors, self.where = dict(tensors), where
        self.taken: set[str] = set()

    def take(self, *names: str) -> Tensor:
        """The tensor that has one of the names; `CheckpointError` where none has."""
        for name in names:
            if name in self.tensors:
                self.taken.add(name)
                return self.tensors[name].float()
            for gain, direction in ((f"{name}_g", f"{name}_v"), parametrized(name)):
                if gain in self.tensors and direction in self.tensors:
                    self.taken |= {gain, direction}
                    return torch._weight_norm(self.tensors[direction].float(), self.tensors[gain].float(), 0)
        raise CheckpointError(f"{self.where}: '{names[0]}' is missing; is this a checkpoint of another model, or cut?")

    def pair(self, pair: Pair) -> Tensor:
        """Our tensor of a pair."""
        if pair.rows:
            return torch.cat([self._inner(pair, self.take(name)) for name in pair.theirs])
        return self._inner(pair, self.take(*pair.theirs))

    def _inner(self, pair: Pair, found: Tensor) -> Tensor:
        """Without the axes of one value around; what has others is told of with the model's shapes beside it."""
        around = (*found.shape[: pair.before], *found.shape[found.dim() - pair.behind :])
        if any(size != 1 for size in around):
            return found
        return found.reshape(found.shape[pair.before : found.dim() - pair.behind])

    def all(self, pairs: Iterable[Pair]) -> dict[str, Tensor]:
        """Our tensors of pairs, by our names."""
        return {pair.ours: self.pair(pair) for pair in pairs}

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def finish(self) -> None:
        """`CheckpointError` if tensors are left over: the model would not be the published one."""
        left = [n for n in self.tensors if n not in self.taken and n.rsplit(".", 1)[-1] not in IGNORED]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise CheckpointError(f"{self.where}: nothing takes {', '.join(left[:3])}{more}: not the expected model")


def theirs_of(pairs: Iterable[Pair], tensors: Mapping[str, Tensor], weight_norm: bool = False) -> dict[str, Tensor]:
    """Our `tensors` by their names and in their shapes: what `Published.all` makes the same tensors of, bit by bit."""
    found: dict[str, Tensor] = {}
    for pair in pairs:
        tensor = tensors[pair.ours].detach()
        parts = tensor.split(list(pair.rows)) if pair.rows else [tensor]
        parts = [part.reshape(*[1] * pair.before, *part.shape, *[1] * pair.behind) for part in parts]
        if pair.normed and weight_norm:
            found |= zip(parametrized(pair.theirs[0]), length_and_direction(tensor), strict=True)
        else:
            found |= zip(pair.theirs, parts, strict=bool(pair.rows))
    return found
