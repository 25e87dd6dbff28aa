"""Reading the weights out of ONNX files: tensors by name, and which node uses them. Nothing is run.

An ONNX file is one protocol buffer: fields with a number and a kind, some of which hold further ones. The numbers of
those read here are onnx/onnx.proto's: of a model its graph (7), of a graph its nodes (1) and initializers (5).
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.errors import CheckpointError

KINDS = {1: "<f4", 7: "<i8", 10: "<f2", 11: "<f8"}  # of TensorProto: float, int64, float16, double


@dataclass(frozen=True)
class Node:
    """An operator with the names of what goes in and what comes out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """What a file holds: its nodes in order, and tensors by name."""

    nodes: list[Node]
    tensors: dict[str, Tensor]


def read_onnx(path: str | Path) -> Weights:
    """Nodes and tensors of an ONNX file; `CheckpointError` where it is none, or its data lie in another file."""
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            view = memoryview(content)
            try:
                graphs = [value for number, value in _fields(view) if number == 7]
                if len(graphs) != 1 or isinstance(graphs[0], int):
                    raise CheckpointError(f"{path}: no ONNX model: it has {len(graphs)} graphs")
                return _graph(graphs[0], path)
            finally:
                graphs = []
                view.release()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, IndexError, UnicodeDecodeError, BufferError) as error:
        raise CheckpointError(f"{path}: no ONNX file, or a damaged one: {error}") from error


def _graph(view: Any, path: Path) -> Weights:
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    for number, value in _fields(view):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            name, tensor = _tensor(value, path)
            if tensor is not None:
                tensors[name] = tensor
    return Weights(nodes, tensors)


def _node(view: Any) -> Node:
    told: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}  # inputs, outputs, name, operator
    for number, value in _fields(view):
        if number in told:
            told[number].append(bytes(value).decode())
    return Node("".join(told[4]), "".join(told[3]), tuple(told[1]), tuple(told[2]))


def _tensor(view: Any, path: Path) -> tuple[str, Tensor | None]:
    """A tensor of the kinds that weights have; None of others."""
    shape: list[int] = []
    kind, name, data = 0, "", b""
    for number, value in _fields(view):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_numbers(value))
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(value).decode()
        elif number in (4, 9):  # float_data packed, or raw_data
            data = bytes(value)
        elif number == 13:
            raise CheckpointError(f"{path}: '{name}' has its data in another file, which is not read")
    if kind not in KINDS:
        return name, None
    return name, torch.from_numpy(np.frombuffer(data, KINDS[kind]).reshape(shape).copy())


def _fields(view: Any) -> Iterator[tuple[int, Any]]:
    """Numbers of fields and what they hold: a whole number, or bytes."""
    at = 0
    while at < len(view):
        key, at = _number(view, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(view, at)
        elif kind in (1, 5):
            value, at = None, at + (8 if kind == 1 else 4)
        elif kind == 2:
            size, at = _number(view, at)
            value, at = view[at : at + size], at + size
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(view):
            raise ValueError("it is cut short")
        yield key >> 3, value


def _number(view: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128 or shift > 63:
            return value, at


def _numbers(view: Any) -> Iterator[int]:
    at = 0
    while at < len(view):
        value, at = _number(view, at)
        yield value


def fed_by(weights: Weights, name: str) -> Tensor | None:
    """The tensor that a MatMul multiplies by, to whose result a node adds the tensor `name`."""
    adding = next((node for node in weights.nodes if node.operator == "Add" and name in node.inputs), None)
    others: Sequence[str] = [each for each in adding.inputs if each != name] if adding else []
    for node in weights.nodes:
        if node.operator == "MatMul" and set(node.outputs) & set(others):
            return next((weights.tensors[each] for each in node.inputs if each in weights.tensors), None)
    return None
