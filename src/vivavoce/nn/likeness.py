"""Whether two modules compute the same: what a file in another format is checked by, when it is written."""

import dataclasses
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import nn

# What training alone reads, and sizes that the tensors' shapes tell.
_PASSED_OVER = {
    *("training", "dropout", "layer_drop", "layer_scale", "bypass", "dropout_levels", "commitment", "codebook"),
    *("decay", "dead_ratio", "replace_every", "start_iterations", "seed", "initialized", "updates"),
    *("tile", "head_dim", "kv_heads", "feedforward"),
}
_PLAIN = (bool, int, float, str, tuple, list, Fraction, type(None))


def unlike(ours: nn.Module, other: nn.Module, beside: Iterable[str] = ()) -> list[str]:
    """What differs between two modules: parts, settings, tensors (bit by bit), but for what training alone reads.

    beside: attributes of `ours` itself, not of its parts, that do not count.
    """
    found = []
    parts, others = dict(ours.named_modules()), dict(other.named_modules())
    found += [f"{name} is missing" for name in parts.keys() - others.keys()]
    found += [f"{name} is there" for name in others.keys() - parts.keys()]
    for name in parts.keys() & others.keys():
        part, there = parts[name], others[name]
        if type(part) is not type(there):
            found.append(f"{name or 'the whole'} is a {type(part).__name__}, there a {type(there).__name__}")
            continue
        mine, theirs = (dict(_settings(each, () if name else beside)) for each in (part, there))
        where = f"{name}." if name else ""
        found += [f"{where}{key} is {mine[key]!r}, there {value!r}" for key, value in theirs.items()
                  if key in mine and mine[key] != value]  # fmt: skip
    if found:
        return sorted(found)
    tensors, theirs = ours.state_dict(), other.state_dict()
    names = [name for name in tensors if name.rpartition(".")[2] not in _PASSED_OVER]
    return [f"the values of {name} are others" for name in names if not torch.equal(tensors[name], theirs[name])]


def _settings(module: nn.Module, beside: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name in beside or name.startswith("_"):
            continue
        yield from _flat(name, value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if name.rpartition(".")[2] in _PASSED_OVER:
        return
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _flat(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, list | tuple):
        yield name, tuple(value)
    elif isinstance(value, _PLAIN):
        yield name, value
