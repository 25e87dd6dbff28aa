"""Other people's tensors into a stage: each of ours is made of some of theirs, and none of either is left over."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivavoce.errors import CheckpointError

Make = Callable[[Sequence[Tensor]], Tensor]


def same(parts: Sequence[Tensor]) -> Tensor:
    """The one tensor as it is."""
    return parts[0]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """The one tensor as a vector: [1, 1, D] -> [D]."""
    return parts[0].flatten()


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several matrices, one behind another."""
    return torch.cat(list(parts), dim=0)


def joined_by_step(parts: Sequence[Tensor]) -> Tensor:
    """As `joined`, of stacked matrices [steps, out, in]."""
    return torch.cat(list(parts), dim=1)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Matrices of the steps: [steps, out, in]."""
    return torch.stack(list(parts))


def entry(number: int) -> Make:
    """Of one stacked tensor, the entry of a step."""
    return lambda parts: parts[0][number]


def rows(start: int, end: int) -> Make:
    """Some rows of one matrix."""
    return lambda parts: parts[0][start:end]


@dataclass(frozen=True)
class Pair:
    """Our tensor `ours` is made of `theirs`. partly: they hold more, which their model does not use either."""

    ours: str
    theirs: tuple[str, ...]
    make: Make = same
    partly: bool = False


def one(ours: str, theirs: str, make: Make = same) -> Pair:
    """A pair of two names."""
    return Pair(ours, (theirs,), make)


def fill(
    module: nn.Module,
    pairs: Iterable[Pair],
    tensors: dict[str, Tensor],
    where: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give `module`, built without memory (device meta), the tensors that `pairs` make, on `device` in `dtype`.

    `tensors` is emptied on the way, so that two copies are never there. Raises `CheckpointError` that names what is
    missing, of another shape, or left over.
    """
    pairs, own = list(pairs), module.state_dict()
    made = check(module, pairs, tensors, where)
    uses = Counter(name for pair in pairs for name in pair.theirs)
    found = {}
    for pair, make in made:
        tensor = make([tensors[name] for name in pair.theirs])
        found[pair.ours] = laid_out(tensor, own[pair.ours], device, dtype)
        for name in pair.theirs:
            uses[name] -= 1
            if not uses[name]:
                del tensors[name]
    module.load_state_dict(found, strict=True, assign=True)


def check(
    module: nn.Module, pairs: Sequence[Pair], tensors: Mapping[str, Tensor], where: str
) -> list[tuple[Pair, Make]]:
    """The pairs with what makes them; `CheckpointError` says how `tensors` do not fit `module`."""
    own = module.state_dict()
    if strange := sorted(set(own) ^ {pair.ours for pair in pairs}):
        raise CheckpointError(f"{where}: no rule says where '{strange[0]}' comes from: a fault of ours, report it")
    wanted = {name for pair in pairs for name in pair.theirs}
    problems = [f"'{name}' is missing" for name in sorted(wanted - set(tensors))]
    problems += [f"'{name}' is in no part of the model that its configuration describes"
                 for name in sorted(set(tensors) - wanted)]
    taken: Counter[str] = Counter()
    for pair in pairs:
        if any(name not in tensors for name in pair.theirs):
            continue
        theirs = [tensors[name] for name in pair.theirs]
        shapes = ", ".join(str(list(tensor.shape)) for tensor in theirs)
        try:
            shape = pair.make([torch.empty(tensor.shape, device="meta") for tensor in theirs]).shape
        except (RuntimeError, IndexError):
            shape = None
        if shape != own[pair.ours].shape:
            name = pair.theirs[0] + (f" (and {len(pair.theirs) - 1} more)" if len(pair.theirs) > 1 else "")
            problems.append(f"'{name}' is {shapes}; its configuration makes {list(own[pair.ours].shape)} of it")
        elif len(pair.theirs) == 1:
            taken[pair.theirs[0]] += tensors[pair.theirs[0]].numel() if pair.partly else own[pair.ours].numel()
    problems += [f"'{name}' is {list(tensors[name].shape)}; its configuration makes {size} numbers of it"
                 for name, size in taken.items() if size < tensors[name].numel()]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"{where} does not fit: {'; '.join(problems[:4])}{more}")
    return [(pair, pair.make) for pair in pairs]


def laid_out(tensor: Tensor, like: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A copy that lies in memory as `like` does (see `vivavoce.nn.linear`)."""
    copy = torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=device)
    return copy.copy_(tensor)
