"""From the graph of a TFLite model that streams to a chain of streaming layers.

Such a graph computes one block of the signal a call and keeps in variables what the next call needs. Its convolutions
put the variable before the block and keep the last frames of both; its transposed convolutions keep what reaches
beyond the block. Here each becomes one layer with that state, for any number of blocks at once. Residual connections
are sums with what stood earlier in the chain.

Frames are [1, frames, 1, channels] there. All is read from the file: the order of layers, weights, strides, dilations,
groups, scales. It must be causal and without padding, and all variables zero at first; anything else is a
`CheckpointError`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.codecs.tflite import MISFITS, VALID, TFLiteGraph, TFLiteModel, TFLiteOperator, TFLiteTensor
from vivavoce.codecs.tflite_layers import (
    Add8,
    BlockTranspose,
    Dequantize,
    Int8Conv,
    LeakyReLU8,
    OrderedConv,
    Quantize,
    Residual8,
    Scale,
)
from vivavoce.errors import CheckpointError
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming


def streaming_chain(model: TFLiteModel, number: int = 0) -> Chain:
    """The layers of a subgraph: frames [B, T, D] -> [B, T', D'] float32."""
    if not 0 <= number < len(model.graphs):
        raise CheckpointError(f"there is no subgraph {number}")
    graph = model.graphs[number]
    where = f"the graph '{graph.name}'"
    try:
        walk = _Walk(model, graph)
        for operator in graph.operators:
            name = graph.tensors[operator.outputs[0]].name if operator.outputs else "?"
            where = f"{operator.kind} '{name}' of the graph '{graph.name}'"
            walk.follow(operator)
        where = f"the end of the graph '{graph.name}'"
        return walk.chain()
    except MISFITS as error:
        what = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{where}: {what}") from error


@dataclass(frozen=True)
class _Value:
    """What a tensor of the graph is here: the output of the first `at` parts of the chain, `width` wide, and beside it
    what a variable holds: `past` frames before it (a convolution's), or `over` frames that are added (a transposed
    one's). group: its number where channels were split."""

    at: int
    width: int
    past: int = 0
    over: int = 0
    variable: str = ""
    group: int | None = None


@dataclass(frozen=True)
class _Branch:
    """A transposed convolution, before its output is joined with what the last block has left over."""

    operator: TFLiteOperator
    value: _Value
    variable: str = ""
    overlap_bias: Tensor | None = None


class _Walk:
    """Operators in their order; `parts` grow at their end, and a residual sum folds its parts into one."""

    def __init__(self, model: TFLiteModel, graph: TFLiteGraph):
        self.model, self.graph = model, graph
        self.parts: list[Streaming] = []
        self.values: dict[int, _Value] = {}
        self.handles: dict[int, str] = {}  # of variables
        self.started: dict[str, tuple[int, ...]] = {}  # their shapes, zero at first
        self.states: dict[int, tuple[str, int]] = {}  # what was read from a variable, and its frames
        self.next: dict[int, str] = {}  # what may be assigned to a variable
        self.branches: dict[int, _Branch] = {}
        self.tails: dict[int, _Branch] = {}  # what reaches beyond the block
        (first,) = graph.inputs
        self.values[first] = _Value(0, -1)

    def chain(self) -> Chain:
        (last,) = self.graph.outputs
        self.current(last)
        return Chain(*self.parts)

    def follow(self, operator: TFLiteOperator) -> None:
        if operator.options.get("activation", 0):
            raise CheckpointError("a fused activation is not supported")
        follow = getattr(self, f"_{operator.kind.lower()}", None)
        if follow is None:
            raise CheckpointError("an operator that no layer here stands for")
        follow(operator)

    # Tensors.

    def tensor(self, number: int) -> TFLiteTensor:
        if number < 0:
            raise CheckpointError("a tensor is missing")
        return self.graph.tensors[number]

    def constant(self, number: int) -> np.ndarray:
        tensor = self.tensor(number)
        if tensor.data is None:
            raise CheckpointError(f"'{tensor.name}' should be a constant")
        return tensor.data

    def scale(self, number: int) -> Scale:
        tensor = self.tensor(number)
        if tensor.kind != "int8" or len(tensor.scales) != 1:
            raise CheckpointError(f"'{tensor.name}' should have 8 bits and one scale")
        return Scale(float(tensor.scales[0]), int(tensor.zeros[0]))

    def current(self, number: int) -> _Value:
        """The value of a tensor that is the end of the chain so far."""
        value = self.values.get(number)
        if value is None or value.at != len(self.parts):
            raise CheckpointError(f"'{self.tensor(number).name}' is not where the chain ends")
        return value

    def append(self, part: Streaming, output: int, **beside: Any) -> None:
        self.parts.append(part)
        if part.width != self.tensor(output).shape[-1]:
            raise CheckpointError(f"{part.width} channels where the file says {self.tensor(output).shape}")
        self.values[output] = _Value(len(self.parts), part.width, **beside)

    def pointwise(self, operator: TFLiteOperator, function: nn.Module) -> None:
        value = self.current(operator.inputs[0])
        width = self.tensor(operator.inputs[0]).shape[-1]
        beside = {"past": value.past, "variable": value.variable}
        self.append(Pointwise(function, width), operator.outputs[0], **beside)

    # Variables.

    def _call_once(self, operator: TFLiteOperator) -> None:
        number = operator.options["subgraph"]
        if not 0 <= number < len(self.model.graphs):
            raise CheckpointError(f"there is no subgraph {number}")
        graph = self.model.graphs[number]
        handles: dict[int, str] = {}
        for inner in graph.operators:
            if inner.kind == "VAR_HANDLE":
                handles[inner.outputs[0]] = inner.options["name"]
                continue
            handle, value = inner.inputs if inner.kind == "ASSIGN_VARIABLE" else (-1, -1)
            tensor = graph.tensors[value]
            if handle not in handles or value < 0 or tensor.data is None or tensor.data.any():
                raise CheckpointError("variables should be set to zeros at first, and nothing else done there")
            self.started[handles[handle]] = tensor.shape

    def _var_handle(self, operator: TFLiteOperator) -> None:
        self.handles[operator.outputs[0]] = operator.options["name"]

    def _read_variable(self, operator: TFLiteOperator) -> None:
        name = self.handles[operator.inputs[0]]
        shape = self.tensor(operator.outputs[0]).shape
        if self.started.get(name) != shape or len(shape) != 4:
            raise CheckpointError(f"variable '{name}' is {self.started.get(name)} at first, then {shape}")
        self.states[operator.outputs[0]] = name, shape[1]

    def _assign_variable(self, operator: TFLiteOperator) -> None:
        handle, value = operator.inputs
        if self.next.get(value) != self.handles[handle]:
            raise CheckpointError("a variable is set to what is no end of its own signal")

    # Signals.

    def _reshape(self, operator: TFLiteOperator) -> None:
        """At the ends of the graph: dimensions of 1 come and go."""
        source, target = (self.tensor(number).shape for number in (operator.inputs[0], operator.outputs[0]))
        if [size for size in source if size > 1] != [size for size in target if size > 1]:
            raise CheckpointError(f"{source} becomes {target}")
        self.values[operator.outputs[0]] = self.current(operator.inputs[0])

    def _concatenation(self, operator: TFLiteOperator) -> None:
        (output,) = operator.outputs
        if all(number in self.branches for number in operator.inputs):
            self.transpose([self.branches[number] for number in operator.inputs], output)
            return
        state, signal = operator.inputs
        if operator.options["axis"] != 1 or state not in self.states:
            raise CheckpointError("it should put a variable's frames before those of a signal")
        name, frames = self.states[state]
        if signal in self.values:
            value = self.current(signal)
            self.values[output] = replace(value, past=frames, variable=name)
        elif not self.constant(signal).any():
            self.states[output] = name, frames  # over a block of zeros
        else:
            raise CheckpointError("it should put a variable's frames before those of a signal")

    def _strided_slice(self, operator: TFLiteOperator) -> None:
        """The last frames of a signal with its past, for the next call; or of a transposed convolution's output."""
        source, (output,) = operator.inputs[0], operator.outputs
        frames, kept = self.tensor(source).shape[1], self.tensor(output).shape[1]
        begin, end, step = (self.constant(number) for number in operator.inputs[1:])
        first = 0 if operator.options["begin"] & 2 else int(begin[1]) % frames
        last = frames if operator.options["end"] & 2 else int(end[1]) % frames
        if any(operator.options[name] for name in ("ellipsis", "new_axis", "shrink")) or (step != 1).any():
            raise CheckpointError("it should cut frames off one end")
        if last - first != kept or self.tensor(source).shape[2:] != self.tensor(output).shape[2:]:
            raise CheckpointError(f"{last - first} frames where the file says {kept}")
        value, branch = self.values.get(source), self.branches.get(source)
        if last == frames and value is not None and value.past == kept:
            self.next[output] = value.variable
        elif last == frames and branch is not None:
            self.tails[output] = branch
        elif first == 0 and branch is not None:
            self._heads(source, output, kept)
        else:
            raise CheckpointError("it should keep the end of a signal, or take its beginning")

    def _split(self, operator: TFLiteOperator) -> None:
        axis, source = operator.inputs
        if int(self.constant(axis)) not in (-1, len(self.tensor(source).shape) - 1):
            raise CheckpointError("it should split channels")
        value = self.current(source)
        for number, output in enumerate(operator.outputs):
            self.values[output] = replace(value, width=self.tensor(output).shape[-1], group=number)

    # Layers.

    def _leaky_relu(self, operator: TFLiteOperator) -> None:
        source, target = operator.inputs[0], operator.outputs[0]
        slope = operator.options["alpha"]
        if self.tensor(source).kind == "int8":
            self.pointwise(operator, LeakyReLU8(slope, self.scale(source), self.scale(target)))
        else:
            self.pointwise(operator, nn.LeakyReLU(slope))

    def _quantize(self, operator: TFLiteOperator) -> None:
        if self.tensor(operator.inputs[0]).kind != "float32":
            raise CheckpointError("it should take float values")
        self.pointwise(operator, Quantize(self.scale(operator.outputs[0])))

    def _dequantize(self, operator: TFLiteOperator) -> None:
        (source,), (target,) = operator.inputs, operator.outputs
        if source in self.next:
            self.next[target] = self.next[source]
        elif source in self.branches:
            self.branches[target] = self.branches[source]
        else:
            self.pointwise(operator, Dequantize(self.scale(source)))

    def _conv_2d(self, operator: TFLiteOperator) -> None:
        self.convolution(operator, np.moveaxis(self.constant(operator.inputs[1])[:, :, 0], 1, 2))

    def _depthwise_conv_2d(self, operator: TFLiteOperator) -> None:
        if operator.options["multiplier"] != 1:
            raise CheckpointError("each channel should have one filter")
        self.convolution(operator, self.constant(operator.inputs[1])[0, :, 0].T[:, None])

    def convolution(self, operator: TFLiteOperator, weight: np.ndarray) -> None:
        """weight [width, inputs / groups, kernel]."""
        source, weights, biases = operator.inputs
        value, options = self.current(source), operator.options
        inputs = self.tensor(source).shape[-1]
        groups, rest = divmod(inputs, weight.shape[1])
        self.check_strides(operator)
        if rest or groups < 1 or weight.shape[0] % groups:
            raise CheckpointError(f"filters of {weight.shape} for {inputs} channels")
        shape = {"groups": groups, "stride": options["stride_h"], "dilation": options["dilation_h"]}
        if min(shape.values()) < 1:
            raise CheckpointError(f"{shape}")
        if (weight.shape[2] - 1) * shape["dilation"] + 1 - shape["stride"] != value.past:
            raise CheckpointError(f"{value.past} frames before the signal do not make it causal")
        tensors = torch.from_numpy(weight.astype(np.float32)), self.bias(biases, len(weight))
        if self.tensor(source).kind == "int8":
            scales = self.scales(weights, len(weight))
            part: Streaming = Int8Conv(*tensors, self.scale(source), scales, self.scale(operator.outputs[0]), **shape)
        else:
            part = OrderedConv(*tensors, **shape)
        self.append(part, operator.outputs[0])

    def bias(self, number: int, width: int) -> Tensor:
        found = self.constant(number)
        if found.shape != (width,):
            raise CheckpointError(f"a bias of {found.shape} for {width} channels")
        return torch.from_numpy(found.copy())

    def scales(self, number: int, width: int) -> list[float]:
        """Of weights of 8 bits, one for each output channel."""
        tensor = self.tensor(number)
        if tensor.kind != "int8" or len(tensor.scales) not in (1, width) or tensor.zeros.any():
            raise CheckpointError(f"'{tensor.name}' should have 8 bits around zero, one scale or {width}")
        return [float(scale) for scale in tensor.scales.repeat(width // len(tensor.scales))]

    @staticmethod
    def check_strides(operator: TFLiteOperator) -> None:
        options = operator.options
        if options["padding"] != VALID or options["stride_w"] != 1 or options.get("dilation_w", 1) != 1:
            raise CheckpointError("it should go along the frames only, without padding")

    def _add(self, operator: TFLiteOperator) -> None:
        (first, second), (output,) = operator.inputs, operator.outputs
        if first in self.branches and second in self.states:
            self.branches[output] = replace(self.branches[first], variable=self.states[second][0])
            return
        if second in self.values and self.values[second].at == len(self.parts):
            first, second = second, first
        end, skip = self.current(first), self.values.get(second)
        if skip is None or skip.past or end.past or skip.at >= end.at:
            raise CheckpointError("it should add what stood earlier in the chain to its end")
        inner = Chain(*self.parts[skip.at :])
        if self.tensor(output).kind == "int8":
            part: Streaming = Residual8(inner, Add8(self.scale(first), self.scale(second), self.scale(output)))
        else:
            part = Residual(inner)
        if self.tensor(first).shape != self.tensor(second).shape:
            raise CheckpointError(f"{self.tensor(first).shape} and {self.tensor(second).shape}")
        del self.parts[skip.at :]
        self.values = {number: value for number, value in self.values.items() if value.at <= skip.at}
        self.append(part, output)

    # Transposed convolutions: one, or one for each group of channels; then what reaches over is kept, and the rest
    # goes on.

    def _transpose_conv(self, operator: TFLiteOperator) -> None:
        self.check_strides(operator)
        value = self.current(operator.inputs[2])
        if value.past:
            raise CheckpointError("it should be of the block alone")
        self.branches[operator.outputs[0]] = _Branch(operator, value)

    def _sub(self, operator: TFLiteOperator) -> None:
        """What reaches over, without the bias that the next block has anyway."""
        (tail, bias), (output,) = operator.inputs, operator.outputs
        if tail not in self.tails:
            raise CheckpointError("it should take the bias from what reaches beyond a block")
        branch = self.tails[tail]
        found = self.bias(bias, self.tensor(tail).shape[-1])
        for number, other in self.branches.items():
            if other.operator is branch.operator and other.variable == branch.variable:
                self.branches[number] = replace(other, overlap_bias=found)
        self.next[output] = branch.variable

    def _heads(self, source: int, output: int, frames: int) -> None:
        """The block's own frames of a transposed convolution's output."""
        branch = self.branches[source]
        block = self.tensor(branch.operator.inputs[2]).shape[1]
        if branch.overlap_bias is None or frames != block * branch.operator.options["stride_h"]:
            raise CheckpointError("it should give the block's own frames, once the rest is kept")
        if branch.value.group is None:
            self.transpose([branch], output)
        else:
            self.branches[output] = branch

    def transpose(self, branches: list[_Branch], output: int) -> None:
        operators = [branch.operator for branch in branches]
        first = operators[0]
        source, block = first.inputs[2], self.tensor(first.inputs[2]).shape[1]
        weights = [self.constant(operator.inputs[1])[:, :, 0] for operator in operators]  # [width, kernel, inputs]
        if [branch.value.group for branch in branches] not in ([None], list(range(len(branches)))):
            raise CheckpointError("the groups of channels are not in their order")
        if branches[0].value.at != len(self.parts) or len({weight.shape for weight in weights}) != 1:
            raise CheckpointError("groups should be alike")
        if any(operator.options != first.options for operator in operators):
            raise CheckpointError("groups should be alike")
        width = len(weights[0])
        biases = [self.bias(operator.inputs[3], width) for operator in operators]
        overlaps = [branch.overlap_bias for branch in branches if branch.overlap_bias is not None]
        quantized: dict[str, Any] = {}
        if self.tensor(source).kind == "int8":
            scales = [self.scales(operator.inputs[1], width) for operator in operators]
            if any(len(set(own)) > 1 for own in scales):
                raise CheckpointError("a transposed convolution of 8 bits should have one scale")
            quantized = {
                "source": self.scale(source),
                "scales": [own[0] for own in scales],
                "targets": [self.scale(operator.outputs[0]) for operator in operators],
            }
        stacked = torch.from_numpy(np.stack(weights).astype(np.float32)).permute(0, 3, 1, 2)
        stride = first.options["stride_h"]
        part = BlockTranspose(stacked, torch.cat(biases), torch.cat(overlaps), stride, block, **quantized)
        if part.inputs != self.parts[-1].width:
            raise CheckpointError(f"filters for {part.inputs} channels, there are {self.parts[-1].width}")
        self.append(part, output)
