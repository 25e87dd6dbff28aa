"""Reading TFLite models: tensors with their quantization, operators with their options, signatures. Nothing is run.

A TFLite file is a FlatBuffer: tables of optional fields behind offsets that lead forward, so that it can be read where
it lies. Every offset is checked before it is followed. Source: tensorflow/lite/schema/schema.fbs; the numbers of
fields, of operators and of types below are its.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vivavoce.errors import CheckpointError, RequestError

Found = TypeVar("Found")

# Operators that this reader knows, by their number in the file; of each, the options: name -> (field, format, default).
_INT, _BYTE, _FLOAT, _TEXT = "<i", "<b", "<f", "text"
_STRIDES = {"padding": (0, _BYTE, 0), "stride_w": (1, _INT, 0), "stride_h": (2, _INT, 0)}
_FUSED_FIRST = {"activation": (0, _BYTE, 0)}
OPERATORS: dict[int, tuple[str, dict[str, tuple[int, str, Any]]]] = {
    0: ("ADD", _FUSED_FIRST),
    2: ("CONCATENATION", {"axis": (0, _INT, 0), "activation": (1, _BYTE, 0)}),
    3: (
        "CONV_2D",
        {**_STRIDES, "activation": (3, _BYTE, 0), "dilation_w": (4, _INT, 1), "dilation_h": (5, _INT, 1)},
    ),
    4: (
        "DEPTHWISE_CONV_2D",
        {
            **_STRIDES,
            "multiplier": (3, _INT, 0),
            "activation": (4, _BYTE, 0),
            "dilation_w": (5, _INT, 1),
            "dilation_h": (6, _INT, 1),
        },
    ),
    6: ("DEQUANTIZE", {}),
    18: ("MUL", _FUSED_FIRST),
    22: ("RESHAPE", {}),
    36: ("GATHER", {"axis": (0, _INT, 0), "batch_dims": (1, _INT, 0)}),
    41: ("SUB", _FUSED_FIRST),
    45: (
        "STRIDED_SLICE",
        {name: (i, _INT, 0) for i, name in enumerate(("begin", "end", "ellipsis", "new_axis", "shrink"))},
    ),
    49: ("SPLIT", {"splits": (0, _INT, 0)}),
    53: ("CAST", {}),
    55: ("MAXIMUM", {}),
    56: ("ARG_MAX", {}),
    58: ("LESS", {}),
    67: ("TRANSPOSE_CONV", {**_STRIDES, "activation": (3, _BYTE, 0)}),
    72: ("NOT_EQUAL", {}),
    74: ("SUM", {}),
    79: ("ARG_MIN", {}),
    83: ("PACK", {"axis": (1, _INT, 0)}),
    85: ("ONE_HOT", {"axis": (0, _INT, 0)}),
    98: ("LEAKY_RELU", {"alpha": (0, _FLOAT, 0.0)}),
    99: ("SQUARED_DIFFERENCE", {}),
    114: ("QUANTIZE", {}),
    129: ("CALL_ONCE", {"subgraph": (0, _INT, 0)}),
    142: ("VAR_HANDLE", {"name": (1, _TEXT, "")}),
    143: ("READ_VARIABLE", {}),
    144: ("ASSIGN_VARIABLE", {}),
}
TYPES = {0: "float32", 2: "int32", 4: "int64", 6: "bool", 9: "int8", 13: "resource"}
VALID = 1  # of the option `padding`: none

# What a damaged graph may raise beside what is checked by name: numbers of inputs, shapes, names that do not fit.
MISFITS = (CheckpointError, RequestError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class TFLiteTensor:
    """One tensor. data: of a constant, as the file has it; scales, zeros: its quantization, one for all values or one
    for each index of the dimension `axis`; none if it is not quantized."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray | None
    scales: np.ndarray
    zeros: np.ndarray
    axis: int


@dataclass(frozen=True)
class TFLiteOperator:
    """One operator: tensors by their number in the subgraph (-1: left out)."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TFLiteGraph:
    """A subgraph; its operators stand in the order in which they run."""

    name: str
    tensors: tuple[TFLiteTensor, ...]
    operators: tuple[TFLiteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TFLiteModel:
    """A file. signatures: name -> number of the subgraph."""

    graphs: tuple[TFLiteGraph, ...]
    signatures: Mapping[str, int]


def read_tflite(path: Path) -> TFLiteModel:
    """The model in a file. `CheckpointError` for what is none, is cut short, or has operators that are not known."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return parse_tflite(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def parse_tflite(content: bytes) -> TFLiteModel:
    """As `read_tflite`, of a file's bytes."""
    if content[4:8] != b"TFL3":
        raise CheckpointError("no TFLite model: it does not have TFL3 at byte 4")
    try:
        root = _Table(content, 0)
        kinds = root.tables(1, _operator_code)
        buffers = root.tables(4, lambda table: table.bytes(0))
        graphs = root.tables(2, lambda table: _graph(table, kinds, buffers))
        signatures = root.tables(7, lambda table: (table.text(2), table.number(4, "<I", 0)))
    except (_BrokenError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the TFLite model is cut short or damaged: {error}") from None
    for name, number in signatures:
        if number >= len(graphs):
            raise CheckpointError(f"signature '{name}' is of subgraph {number}; there are {len(graphs)}")
    return TFLiteModel(tuple(graphs), dict(signatures))


class _BrokenError(ValueError):
    """An offset leads out of the file, or a number is none that can stand there."""


class _Table:
    """A FlatBuffers table, the offset to which stands at `place`."""

    def __init__(self, content: bytes, place: int):
        self.content = content
        self.at = place + self._read("<I", place)
        self.fields = self.at - self._read("<i", self.at)
        self.size = self._read("<H", self.fields)

    def _read(self, form: str, at: int) -> Any:
        if not 0 <= at <= len(self.content) - struct.calcsize(form):
            raise _BrokenError(f"an offset leads to byte {at} of {len(self.content)}")
        return struct.unpack_from(form, self.content, at)[0]

    def _field(self, field: int) -> int | None:
        """Where the value of a field stands; None where it is left out."""
        slot = 4 + 2 * field
        offset = self._read("<H", self.fields + slot) if slot + 2 <= self.size else 0
        return self.at + offset if offset else None

    def number(self, field: int, form: str, default: Any) -> Any:
        at = self._field(field)
        return default if at is None else self._read(form, at)

    def _vector(self, field: int, width: int) -> tuple[int, int]:
        """Where the values of a vector begin, and how many there are of `width` bytes each."""
        at = self._field(field)
        if at is None:
            return 0, 0
        at += self._read("<I", at)
        count = self._read("<I", at)
        if count * width > len(self.content) - at - 4:
            raise _BrokenError(f"a vector of {count} values at byte {at} of {len(self.content)}")
        return at + 4, count

    def bytes(self, field: int) -> bytes:
        at, count = self._vector(field, 1)
        return self.content[at : at + count]

    def text(self, field: int) -> str:
        return self.bytes(field).decode()

    def array(self, field: int, kind: str) -> np.ndarray:
        form = np.dtype(kind).newbyteorder("<")
        at, count = self._vector(field, form.itemsize)
        return np.frombuffer(self.content, form, count, at).astype(kind)

    def integers(self, field: int) -> tuple[int, ...]:
        return tuple(self.array(field, "int32").tolist())

    def table(self, field: int) -> "_Table | None":
        at = self._field(field)
        return None if at is None else _Table(self.content, at)

    def tables(self, field: int, read: Callable[["_Table"], Found]) -> list[Found]:
        at, count = self._vector(field, 4)
        return [read(_Table(self.content, at + 4 * number)) for number in range(count)]


def _operator_code(table: _Table) -> int:
    """The number of an operator, which old files keep in one byte."""
    number = max(table.number(0, "<b", 0), table.number(3, "<i", 0))
    if number not in OPERATORS:
        name = table.text(1)
        known = ", ".join(name for name, _ in OPERATORS.values())
        raise CheckpointError(f"operator {f'{name!r}' if name else number} is none of those known here: {known}")
    return number


def _graph(table: _Table, kinds: list[int], buffers: list[bytes]) -> TFLiteGraph:
    tensors = table.tables(0, lambda tensor: _tensor(tensor, buffers))
    operators = table.tables(3, lambda operator: _operator(operator, kinds, len(tensors)))
    inputs, outputs = table.integers(1), table.integers(2)
    _check_tensors((*inputs, *outputs), len(tensors))
    return TFLiteGraph(table.text(4), tuple(tensors), tuple(operators), inputs, outputs)


def _tensor(table: _Table, buffers: list[bytes]) -> TFLiteTensor:
    name, shape, number = table.text(3), table.integers(0), table.number(2, "<I", 0)
    kind = TYPES.get(table.number(1, "<b", 0))
    if kind is None:
        raise CheckpointError(f"tensor '{name}' is of type {table.number(1, '<b', 0)}; known are {TYPES}")
    if number >= len(buffers) or min(shape, default=0) < 0:
        raise _BrokenError(f"tensor '{name}' of shape {shape} in buffer {number} of {len(buffers)}")
    data = None
    if buffers[number] and kind != "resource":
        form = np.dtype(kind).newbyteorder("<")
        size = form.itemsize
        for length in shape:
            size *= length  # Python's integers do not overflow
        if size != len(buffers[number]):
            raise _BrokenError(f"tensor '{name}' of shape {shape} has {len(buffers[number])} bytes")
        data = np.frombuffer(buffers[number], form).astype(kind).reshape(shape)
        if kind == "float32" and not np.isfinite(data).all():
            raise _BrokenError(f"tensor '{name}' is not finite")
    quantization = table.table(4)
    scales, zeros, axis = np.zeros(0, np.float32), np.zeros(0, np.int64), 0
    if quantization is not None:
        scales, zeros = quantization.array(2, "float32"), quantization.array(3, "int64")
        axis = quantization.number(6, "<i", 0)
        if len(scales):
            _check_quantization(name, kind, shape, scales, zeros, axis)
    return TFLiteTensor(name, kind, shape, data, scales, zeros, axis)


def _check_quantization(
    name: str, kind: str, shape: tuple[int, ...], scales: np.ndarray, zeros: np.ndarray, axis: int
) -> None:
    whole = len(scales) == 1 or (0 <= axis < len(shape) and len(scales) == shape[axis])
    inside = kind != "int8" or ((zeros >= -128) & (zeros <= 127)).all()
    if not whole or len(zeros) != len(scales) or not inside or not (np.isfinite(scales) & (scales > 0)).all():
        raise _BrokenError(f"tensor '{name}' has a quantization that cannot be")


def _operator(table: _Table, kinds: list[int], tensors: int) -> TFLiteOperator:
    number = table.number(0, "<I", 0)
    if number >= len(kinds):
        raise _BrokenError(f"an operator of kind {number} of {len(kinds)}")
    kind, known = OPERATORS[kinds[number]]
    inputs, outputs = table.integers(1), table.integers(2)
    _check_tensors((*inputs, *outputs), tensors)
    found, options = table.table(4), {}
    for name, (field, form, default) in known.items():
        if found is None:
            options[name] = default
        else:
            options[name] = found.text(field) if form == _TEXT else found.number(field, form, default)
    return TFLiteOperator(kind, inputs, outputs, options)


def _check_tensors(numbers: tuple[int, ...], count: int) -> None:
    if numbers and not (min(numbers) >= -1 and max(numbers) < count):
        raise _BrokenError(f"tensors {numbers} of {count}")
