"""Writing TFLite models, as small as tests need them: graphs of tensors and operators into a FlatBuffer."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

STRIDES = {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32")}
# tensorflow/lite/schema/schema.fbs: operator -> its number, the number of its options' type, version, and the options.
OPERATORS: dict[str, tuple[int, int, int, dict[str, tuple[int, str]]]] = {
    "ADD": (0, 11, 2, {"activation": (0, "Int8")}),
    "CONCATENATION": (2, 10, 1, {"axis": (0, "Int32")}),
    "CONV_2D": (
        3, 1, 6, {**STRIDES, "activation": (3, "Int8"), "dilation_w": (4, "Int32"), "dilation_h": (5, "Int32")},
    ),
    "DEPTHWISE_CONV_2D": (
        4, 2, 3, {**STRIDES, "multiplier": (3, "Int32"), "dilation_w": (5, "Int32"), "dilation_h": (6, "Int32")},
    ),
    "DEQUANTIZE": (6, 38, 2, {}),
    "LOGISTIC": (14, 0, 1, {}),
    "MUL": (18, 21, 1, {}),
    "RESHAPE": (22, 17, 1, {}),
    "GATHER": (36, 23, 1, {"axis": (0, "Int32")}),
    "SUB": (41, 28, 2, {}),
    "STRIDED_SLICE": (45, 32, 2, {"begin": (0, "Int32"), "end": (1, "Int32"), "shrink": (4, "Int32")}),
    "SPLIT": (49, 35, 1, {"splits": (0, "Int32")}),
    "CAST": (53, 37, 1, {"source": (0, "Int8"), "target": (1, "Int8")}),
    "MAXIMUM": (55, 39, 1, {}),
    "ARG_MAX": (56, 40, 1, {"index": (0, "Int8")}),
    "LESS": (58, 41, 1, {}),
    "TRANSPOSE_CONV": (67, 49, 3, STRIDES),
    "NOT_EQUAL": (72, 54, 1, {}),
    "SUM": (74, 27, 1, {}),
    "ARG_MIN": (79, 57, 1, {"index": (0, "Int8")}),
    "PACK": (83, 59, 1, {"count": (0, "Int32"), "axis": (1, "Int32")}),
    "ONE_HOT": (85, 61, 1, {"axis": (0, "Int32")}),
    "LEAKY_RELU": (98, 75, 2, {"alpha": (0, "Float32")}),
    "SQUARED_DIFFERENCE": (99, 76, 1, {}),
    "QUANTIZE": (114, 89, 1, {}),
    "CALL_ONCE": (129, 103, 1, {"subgraph": (0, "Int32")}),
    "VAR_HANDLE": (142, 111, 1, {"name": (1, "text")}),
    "READ_VARIABLE": (143, 112, 1, {}),
    "ASSIGN_VARIABLE": (144, 113, 1, {}),
}
TYPES = {"float32": 0, "int32": 2, "int64": 4, "bool": 6, "int8": 9, "resource": 13}


class Graph:
    """A subgraph that grows operator by operator; tensors are numbers."""

    def __init__(self, name: str):
        self.name = name
        self.tensors: list[dict[str, Any]] = []
        self.operators: list[tuple[str, list[int], list[int], dict[str, Any]]] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def tensor(self, shape: Sequence[int], kind: str = "float32", data: np.ndarray | None = None, scales=(), zeros=(),
               axis: int = 0, name: str = "") -> int:
        number = len(self.tensors)
        self.tensors.append({"shape": list(shape), "kind": kind, "data": data, "scales": np.atleast_1d(scales),
                             "zeros": np.atleast_1d(zeros), "axis": axis, "name": name or f"{self.name}/{number}"})
        return number

    def constant(self, values, kind: str = "float32", **quantization) -> int:
        data = np.ascontiguousarray(np.asarray(values, dtype=kind))
        return self.tensor(np.shape(values), kind, data, **quantization)

    def shape(self, number: int) -> list[int]:
        return self.tensors[number]["shape"]

    def add(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], **options) -> None:
        self.operators.append((kind, list(inputs), list(outputs), options))

    def op(self, kind: str, inputs: Sequence[int], shape: Sequence[int], result: str = "float32", scales=(), zeros=(),
           **options) -> int:
        """An operator with one output."""
        output = self.tensor(shape, result, scales=scales, zeros=zeros)
        self.add(kind, inputs, [output], **options)
        return output


def write_tflite(graphs: Sequence[Graph], signatures: Mapping[str, int]) -> bytes:
    """The bytes of a model."""
    builder = flatbuffers.Builder(1 << 16)
    kinds = sorted({operator[0] for graph in graphs for operator in graph.operators})

    def vector(offsets: Sequence[int]) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    def array(values, kind: str) -> int:
        return builder.CreateNumpyVector(np.asarray(values, dtype=kind))

    def table(fields: Mapping[int, tuple[str, Any]]) -> int:
        builder.StartObject(max(fields, default=-1) + 1)
        for field, (form, value) in fields.items():
            getattr(builder, f"Prepend{form}Slot")(field, value, 0)
        return builder.EndObject()

    def link(offset: int) -> tuple[str, int]:
        return "UOffsetTRelative", offset

    buffers = [table({})]

    def tensor(own: Mapping[str, Any]) -> int:
        place = 0
        if own["data"] is not None:
            place = len(buffers)
            builder.StartVector(1, own["data"].nbytes, 16)
            builder.head = builder.head - own["data"].nbytes
            builder.Bytes[builder.head : builder.head + own["data"].nbytes] = own["data"].tobytes()
            buffers.append(table({0: link(builder.EndVector())}))
        fields = {
            0: link(array(own["shape"], "int32")), 1: ("Int8", TYPES[own["kind"]]), 2: ("Uint32", place),
            3: link(builder.CreateString(own["name"])),
        }
        if len(own["scales"]):
            scales, zeros = array(own["scales"], "float32"), array(own["zeros"], "int64")
            fields[4] = link(table({2: link(scales), 3: link(zeros), 6: ("Int32", own["axis"])}))
        return table(fields)

    def operator(kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Mapping[str, Any]) -> int:
        _, union, _, known = OPERATORS[kind]
        found = {}
        for name, value in options.items():
            field, form = known[name]
            found[field] = link(builder.CreateString(value)) if form == "text" else (form, value)
        fields = {0: ("Uint32", kinds.index(kind)), 1: link(array(inputs, "int32")), 2: link(array(outputs, "int32"))}
        if union:
            fields |= {3: ("Uint8", union), 4: link(table(found))}
        return table(fields)

    def subgraph(graph: Graph) -> int:
        tensors = vector([tensor(own) for own in graph.tensors])
        operators = vector([operator(*own) for own in graph.operators])
        ends = link(array(graph.inputs, "int32")), link(array(graph.outputs, "int32"))
        name = link(builder.CreateString(graph.name))
        return table({0: link(tensors), 1: ends[0], 2: ends[1], 3: link(operators), 4: name})

    def names(graph: Graph, numbers: Sequence[int]) -> int:
        texts = [builder.CreateString(graph.tensors[number]["name"]) for number in numbers]
        return vector([table({0: link(text), 1: ("Uint32", number)}) for text, number in zip(texts, numbers)])

    def signature(key: str, number: int) -> int:
        graph = graphs[number]
        ends = link(names(graph, graph.inputs)), link(names(graph, graph.outputs))
        text = link(builder.CreateString(key))
        return table({0: ends[0], 1: ends[1], 2: text, 4: ("Uint32", number)})

    def code(kind: str) -> int:
        number, _, version, _ = OPERATORS[kind]
        return table({0: ("Int8", min(number, 127)), 2: ("Int32", version), 3: ("Int32", number)})

    codes = vector([code(kind) for kind in kinds])
    subgraphs = vector([subgraph(graph) for graph in graphs])
    keys = vector([signature(key, number) for key, number in signatures.items()])
    root = table({0: ("Uint32", 3), 1: link(codes), 2: link(subgraphs), 4: link(vector(buffers)), 7: link(keys)})
    builder.Finish(root, file_identifier=b"TFL3")
    return bytes(builder.Output())
