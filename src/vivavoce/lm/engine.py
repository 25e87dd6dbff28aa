"""Single steps of a language model by OpenVINO: the backbone's step, the depth transformer's, the heads.

The modules themselves are traced, so that there is one definition of what they compute; only attention is written out
here, over a ring and the new frame beside it. State stays what it is, a tree of tensors: a compiled step reads rings
where they lie and gives the new keys and values, which are written as ever. So rows are held, reset and joined as
before, and what an engine does not take (whole signals, several frames, first frames) torch does with the same state.

A process that has run OpenVINO should not be forked: start workers of a `DataLoader` before, or let them spawn.

A step of one row is bound by reading the weights once and by the calls; a graph has no calls, and weights of 8 bits are
a quarter to read. They are decompressed as they are read: activations stay float32, unless they are to be rounded too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError, need
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.depth import DepthLayer, DepthTransformer, StepLinear
from vivavoce.lm.depth_decoder import DepthDecoder
from vivavoce.lm.grid import GridLM
from vivavoce.lm.heads import LinearHead
from vivavoce.nn.attention import grown
from vivavoce.nn.streaming import State

GROUP = 64  # activations that are rounded together, with one step, by `int8-dynamic`
KEPT = 2  # numbers of rows that a step stays compiled for


def use_openvino(stage: GridLM, weights: str = "float32") -> None:
    """Let OpenVINO compute the single steps of `stage` from now on, with as many threads as torch has.

    weights: `float32`, or `int8`: the matrices of `stage` are rounded in place (`round_rows`), so that torch, too,
    computes with what the engine reads; `int8-dynamic`: what they are multiplied with is rounded as well, as it comes,
    which is quicker with several rows. A step is compiled, with the weights as they are then, when a number of rows
    first makes one; its weights are a copy in memory.
    Raises `RequestError` where the weights are not float32 on the CPU.
    """
    home = stage.backbone.home()
    if home["device"].type != "cpu" or home["dtype"] != torch.float32:
        raise RequestError(f"the engine 'openvino' takes float32 weights on the CPU, not {home['dtype']} on "
                           f"{home['device']}: load it with device='cpu' and without dtype=")
    if weights != "float32":
        for part in (stage.backbone, stage.linear, stage.depth):
            round_rows(part)
    for module in stage.modules():
        if isinstance(module, Decoder) and steps_alone(module):
            module.engine = DecoderSteps(module, weights)
        elif isinstance(module, DepthTransformer):
            module.engine = DepthSteps(module, weights)
        elif isinstance(module, LinearHead):
            module.engine = Matrices(list(module), weights)
        elif isinstance(module, DepthDecoder) and module.decoder.transformer.positions is None:
            module.engine = DepthDecoderSteps(module, weights)


def steps_alone(decoder: Decoder) -> bool:
    """Whether a step hangs on its frame and its state only."""
    config = decoder.config
    return config.causal and config.memory is None and config.condition is None


@torch.no_grad()
def round_rows(module: nn.Module) -> None:
    """Round the matrices of linear layers in place: each row to -127 … 127 times its largest value / 127."""
    for each in module.modules():
        if isinstance(each, nn.Linear | StepLinear):
            scale = scales(each.weight)
            each.weight.copy_((each.weight / scale).round() * scale)


def scales(matrix: Tensor) -> Tensor:
    """The step of every row [..., out, 1] of a matrix [..., out, in]."""
    largest = matrix.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / 127, torch.ones_like(largest))


@contextlib.contextmanager
def without_reports() -> Iterator[None]:
    """OpenVINO imported in here does not send reports of its use to its makers: it does without that package."""
    name, there = "openvino_telemetry", sys.modules.get("openvino_telemetry")
    if there is None:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if there is None:
            del sys.modules[name]


def runtime() -> Any:
    """The package `openvino`; raises `MissingExtra` where it is not installed."""
    with without_reports():
        return need("openvino", "openvino", "the engine 'openvino'")


class Graph:
    """A traced module, compiled. shared: the first of the inputs that are read where they lie (large ones, and those
    whose size varies); those before it are copied. open_axes: input -> axes whose sizes vary.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Tensor], weights: str, shared: int | None = None,
        open_axes: dict[int, tuple[int, ...]] | None = None,
    ):
        openvino = runtime()
        self._tensor = openvino.Tensor
        model = _traced(module, inputs)
        shapes = {}
        for number, (parameter, example) in enumerate(zip(model.get_parameters(), inputs, strict=True)):
            shape = list(example.shape)
            for axis in (open_axes or {}).get(number, ()):
                shape[axis] = -1
            shapes[parameter.output(0)] = shape
        model.reshape(shapes)
        if weights != "float32":
            _compress(model)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP if weights == "int8-dynamic" else 0),
        }  # fmt: skip
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._outputs = len(model.outputs)
        self._shared = len(inputs) if shared is None else shared
        self._own = [torch.empty(example.shape) for example in inputs[: self._shared]]
        self._there: dict[int, tuple[Tensor, Any]] = {}  # what inputs read, which has to live as long
        for number, buffer in enumerate(self._own):
            self._lay(number, buffer)
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, which are the caller's."""
        with self._lock:
            for buffer, value in zip(self._own, inputs):
                if buffer.shape != value.shape:  # what varies in size lies where it is given
                    raise RequestError(f"a compiled step of {tuple(buffer.shape)} was given {tuple(value.shape)}")
                buffer.copy_(value)
            for number in range(self._shared, len(inputs)):
                value, (before, _) = inputs[number].contiguous(), self._there.get(number, (None, None))
                if before is None or before.data_ptr() != value.data_ptr() or before.shape != value.shape:
                    self._lay(number, value)
            self._request.infer()
            return [torch.from_numpy(self._request.get_output_tensor(i).data.copy()) for i in range(self._outputs)]

    def _lay(self, number: int, value: Tensor) -> None:
        """Let an input read `value` where it lies."""
        tensor = self._tensor(value.numpy(), shared_memory=True)
        self._request.set_input_tensor(number, tensor)
        self._there[number] = value, tensor


def _traced(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """The module as OpenVINO's model."""
    with without_reports():
        reading = need("openvino.frontend.pytorch.ts_decoder", "openvino", "the engine 'openvino'")
        front = need("openvino.frontend", "openvino", "the engine 'openvino'").FrontEndManager()
    front = front.load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: what it takes for a constant is one
        traced = reading.TorchScriptPythonDecoder(module, example_input=tuple(inputs), shared_memory=False)
    return front.convert(front.load(traced))


def _compress(model: Any) -> None:
    """Matrices as int8 with a step for every row, in the form that OpenVINO decompresses while it multiplies."""
    with without_reports():
        opset13 = need("openvino.opset13", "openvino", "the engine 'openvino'")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or len(constant.shape) != 2:
            continue
        matrix = torch.from_numpy(np.array(constant.data))
        step = scales(matrix)
        small = (matrix / step).round().to(torch.int8).numpy()
        wide = opset13.multiply(opset13.convert(opset13.constant(small), np.float32), opset13.constant(step.numpy()))
        node.input(1).replace_source_output(wide.output(0))


def eager(x: Tensor) -> bool:
    """Whether x is what a graph takes: rows of float32 on the CPU, of which no gradient is asked."""
    return len(x) > 0 and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def of_rows(rows: int) -> int:
    """Which graph is for a number of rows, where one is for any number: one row has its own, which is faster."""
    return min(rows, 2)


class ByRows:
    """Something made for each number of rows, the last few of which are kept."""

    def __init__(self) -> None:
        self._made: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, rows: int, make: Callable[[], Any]) -> Any:
        """What is kept for `rows`, or is made now."""
        with self._lock:
            if rows not in self._made:
                self._made[rows] = make()
            self._made.move_to_end(rows)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
            return self._made[rows]


def beside(q: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], bias: Tensor, axis: int) -> Tensor:
    """Attention of one frame to the old keys and values along `axis` and to its own; all [..., heads, head_dim].

    Products by element and sums read a ring in the order in which it lies; as a matrix product it would be turned.
    """
    q = q * q.shape[-1] ** -0.5
    scores = torch.cat([(q * old[0]).sum(-1) + bias, (q * new[0]).sum(-1)], dim=axis)
    shares = scores.softmax(axis)[..., None]
    size = old[0].shape[axis]
    return (shares.narrow(axis, 0, size) * old[1]).sum(axis, keepdim=True) + shares.narrow(axis, size, 1) * new[1]


class _DecoderStep(nn.Module):
    """One frame x [B, 1, D], bias [B, S, 1] of the ring's slots, cosines and sines if there are any, rings
    [B, S, kv_heads, head_dim] -> hidden [B, 1, D]; the new keys and values [2 * layers, B, 1, kv_heads, head_dim]."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, bias: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        transformer = self.decoder.transformer
        rotation = None if transformer.rope is None else (rest[0], rest[1])
        rings = rest if rotation is None else rest[2:]
        new: list[Tensor] = []
        for number, layer in enumerate(transformer.blocks):
            part, old = layer.attention, (rings[2 * number], rings[2 * number + 1])

            def attend(y: Tensor, part=part, old=old) -> Tensor:
                q, k, v = part.project(y, rotation)
                new.extend((k, v))
                if (share := part.heads // part.kv_heads) == 1:
                    return part.merge(beside(q, old, (k, v), bias, 1))
                q = q.unflatten(2, (part.kv_heads, share))
                before, own = (tuple(each[:, :, :, None] for each in pair) for pair in (old, (k, v)))
                return part.merge(beside(q, before, own, bias[..., None], 1).flatten(2, 3))

            x = layer._branch(x, attend, layer.attention_norm, layer.attention_scale, None)
            x = layer._rest(x, None, None, None)
        return self.decoder.norm(x), torch.stack(new)


class DecoderSteps:
    """The single steps of a decoder. State and arguments are those of `Decoder.step`."""

    def __init__(self, decoder: Decoder, weights: str = "float32"):
        self._decoder, self._weights, self._graphs = [decoder], weights, ByRows()  # in a list: it is no part of mine

    @property
    def any_rows(self) -> bool:
        """Whether a number of rows costs no compiling of its own."""
        return self._decoder[0].config.context is None

    def takes(self, x: Tensor, state: State, context: dict[str, Any]) -> bool:
        """Whether this is a step of one frame that is not the first."""
        return (
            x.shape[1] == 1 and eager(x) and all(context.get(name) is None for name in ("memory", "condition"))
            and int(state["position"].max()) > 0
        )  # fmt: skip

    def step(
        self, x: Tensor, state: State, lengths: Tensor | None, positions: Tensor | None = None, consume: bool = False,
        **context: Any,
    ) -> tuple[Tensor, State]:
        """As `Decoder.step`, for what it `takes`."""
        decoder = self._decoder[0]
        transformer = decoder.transformer
        count = torch.ones_like(state["position"]) if lengths is None else lengths
        positions = state["position"][:, None] if positions is None else positions
        x, rotation = transformer._place(x, positions)
        where = transformer.blocks[0].attention.places(state["layer_0"], 1, lengths)
        assert where is not None  # one frame always fits
        layers = [grown(state[f"layer_{i}"], where.bias.shape[2]) for i in range(len(transformer.blocks))]
        # The slot that is written now still holds the frame that leaves the context, or nothing.
        bias = where.bias.transpose(1, 2).clone()
        bias[where.rows, where.slots] = -torch.inf
        rings = [ring for layer in layers for ring in (layer["keys"], layer["values"])]
        inputs = [x, bias, *(rotation or ()), *rings]
        rows = of_rows(len(x)) if self.any_rows else len(x)
        graph = self._graphs.get(rows, lambda: self._compiled(inputs, len(rings)))
        hidden, new = graph(*inputs)
        after = State(position=state["position"] + count, emitted=count)
        for i, layer in enumerate(layers):
            after[f"layer_{i}"] = State(
                position=after["position"], emitted=count,
                keys=where.write(layer["keys"], new[2 * i], consume),
                values=where.write(layer["values"], new[2 * i + 1], consume),
            )  # fmt: skip
        return hidden, after

    def _compiled(self, inputs: Sequence[Tensor], rings: int) -> Graph:
        decoder = self._decoder[0]
        first = len(inputs) - rings
        if decoder.config.context is not None:
            return Graph(_DecoderStep(decoder), inputs, self._weights, first)
        # A store that grows: its size stays open, and with several rows, whose number falls, that as well.
        many = (0,) if len(inputs[0]) > 1 else ()
        axes = {number: (*many, 1) if number == 1 or number >= first else many for number in range(len(inputs))}
        return Graph(_DecoderStep(decoder), inputs, self._weights, 0 if many else 1, axes)


PARTS = ("qkv", "out", "inner", "outer")


class _DepthStep(nn.Module):
    """The layers of a depth transformer with one set of weights: hidden [B, inputs], said [B, width], bias [K, 1, 1],
    earlier keys and values [K, 2, layers, B, heads, head_dim] -> y [B, width] and the new ones; in the place of y
    logits, where the head is the set's own."""

    def __init__(self, depth: DepthTransformer, step: int, head: bool):
        super().__init__()
        layers = [cast(DepthLayer, layer) for layer in depth.layers]
        self.shape = depth.width // depth.head_dim, depth.head_dim
        self.attention_norms = nn.ModuleList(layer.attention_norm for layer in layers)
        self.feedforward_norms = nn.ModuleList(layer.feedforward_norm for layer in layers)
        self.activation = layers[0].activation if layers else F.silu
        self.last = head_of(depth, step) if head else nn.Identity()
        self.entry = constant(depth.entry, step)
        for name in PARTS:
            setattr(self, name, nn.ParameterList(constant(getattr(layer, name), step) for layer in layers))

    def forward(self, hidden: Tensor, said: Tensor, bias: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        x, new = F.linear(hidden, self.entry) + said, []
        for i, (first, second) in enumerate(zip(self.attention_norms, self.feedforward_norms)):
            qkv, out, inner, outer = (getattr(self, name)[i] for name in PARTS)
            q, k, v = F.linear(first(x), qkv).unflatten(1, (3, *self.shape)).unbind(1)
            new.append(torch.stack([k, v]))
            y = beside(q[None], (past[:, 0, i], past[:, 1, i]), (k[None], v[None]), bias, 0)
            x = x + F.linear(y[0].flatten(1), out)
            gate, value = F.linear(second(x), inner).chunk(2, dim=-1)
            x = x + F.linear(self.activation(gate) * value, outer)
        return self.last(x), torch.stack(new, dim=1)


def constant(part: StepLinear, step: int) -> nn.Parameter:
    """The matrix of one step as a parameter of its own, which shares its memory: in a graph it is a constant."""
    return nn.Parameter(part.weight[part.schedule[step]].detach(), requires_grad=False)


def head_of(depth: DepthTransformer, step: int) -> nn.Module:
    """What makes logits of a step's outputs."""
    return nn.Sequential(depth.norm if depth.norms is None else depth.norms[step], depth.heads[step])


class DepthSteps:
    """A depth transformer's levels, one after another, as `DepthTransformer.generate` has them."""

    def __init__(self, depth: DepthTransformer, weights: str = "float32"):
        self._depth, self._weights, self._graphs = [depth], weights, ByRows()

    def takes(self, hidden: Tensor) -> bool:
        """Whether there are rows, on the CPU."""
        return eager(hidden)

    def generate(
        self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor], prefix: Tensor | None, steps: int
    ) -> Tensor:
        """As `DepthTransformer.generate`."""
        depth, rows, levels = self._depth[0], hidden.shape[0], len(self._depth[0].levels)
        layers, heads, head_dim = len(depth.layers), depth.width // depth.head_dim, depth.head_dim
        past = hidden.new_zeros(levels, 2, layers, rows, heads, head_dim)
        bias = hidden.new_full((levels, 1, 1), -torch.inf)
        said, chosen = depth._prefix(prefix, hidden), []
        sets, ends = self._graphs.get(rows, lambda: self._compiled(hidden, said, bias, past))
        for k in range(steps):
            if depth.steps is not None:
                said = said + depth.steps[k]
            x, past[k] = sets[k](hidden, said, bias, past)
            bias[k] = 0
            chosen.append(choose(k, ends[k](x)[0] if ends[k] is not None else x))
            if k + 1 < steps:
                said = depth._said(k, chosen[k])
        return torch.stack(chosen, dim=1)

    def _compiled(self, hidden: Tensor, said: Tensor, bias: Tensor, past: Tensor) -> tuple[list, list]:
        """Of every level the layers, which levels with the same weights share, and the head where it is not in them."""
        depth = self._depth[0]
        steps = range(len(depth.levels))
        schedule = cast(DepthLayer, depth.layers[0]).qkv.schedule if len(depth.layers) else [0] * len(steps)
        order = [(schedule[k], depth.entry.schedule[k]) for k in steps]
        sets, ends = {}, []
        for k, own in enumerate(order):
            alone = order.count(own) == 1
            if own not in sets:
                sets[own] = Graph(_DepthStep(depth, k, alone), [hidden, said, bias, past], self._weights)
            ends.append(None if alone else Graph(head_of(depth, k), [said], self._weights))
        return [sets[own] for own in order], ends


class Matrices:
    """Heads that are a matrix each."""

    def __init__(self, parts: Sequence[nn.Module], weights: str = "float32"):
        self._parts, self._weights = list(parts), weights
        self._graphs = [ByRows() for _ in parts]

    def __call__(self, number: int, x: Tensor) -> Tensor:
        """What part `number` makes of x [B, D]."""
        if not eager(x):
            return self._parts[number](x)
        return self._graphs[number].get(of_rows(len(x)), lambda: self._compiled(number, x))(x)[0]

    def _compiled(self, number: int, x: Tensor) -> Graph:
        many = len(x) > 1
        return Graph(self._parts[number], [x], self._weights, 0 if many else 1, {0: (0,)} if many else None)


class _DepthDecoderStep(nn.Module):
    """A column of a depth decoder: x [B, 1, inputs] and what `_DecoderStep` takes; the same outputs."""

    def __init__(self, head: DepthDecoder):
        super().__init__()
        self.enter, self.step = head.enter, _DecoderStep(head.decoder)

    def forward(self, x: Tensor, bias: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(self.enter(x), bias, *rest)


class DepthDecoderSteps:
    """A depth decoder's levels, one after another, as `DepthDecoder.choose` has them."""

    def __init__(self, head: DepthDecoder, weights: str = "float32"):
        self._head, self._weights, self._graphs = [head], weights, ByRows()
        self._heads = Matrices([head.first, *head.heads], weights)

    def takes(self, hidden: Tensor) -> bool:
        """Whether there are rows, on the CPU."""
        return eager(hidden)

    def choose(self, hidden: Tensor, pick: Callable[[int, Tensor], Tensor], levels: int) -> Tensor:
        """As `DepthDecoder.choose`."""
        head, rows = self._head[0], len(hidden)
        transformer, part = head.decoder.transformer, head.decoder.transformer.blocks[0].attention
        size = len(head.levels)
        stores = hidden.new_zeros(2 * len(transformer.blocks), rows, size, part.kv_heads, part.head_dim)
        bias = hidden.new_full((1, size, 1), -torch.inf)
        angles = None if transformer.rope is None else transformer.rope(torch.arange(size)[None])
        x, chosen = hidden, [pick(0, self._heads(0, hidden))]
        for k in range(levels):
            turn = () if angles is None else tuple(each[:, k : k + 1] for each in angles)
            inputs = [x[:, None], bias, *turn, *stores]
            y, new = self._graphs.get(of_rows(rows), partial(self._compiled, inputs, len(stores)))(*inputs)
            if k > 0:
                chosen.append(pick(k, self._heads(k, y[:, 0])))
            if k + 1 < levels:
                stores[:, :, k], bias[:, k] = new[:, :, 0], 0
                x = head._said(k, chosen[k])
        return torch.stack(chosen, dim=1)

    def _compiled(self, inputs: Sequence[Tensor], stores: int) -> Graph:
        first = len(inputs) - stores
        if len(inputs[0]) == 1:
            return Graph(_DepthDecoderStep(self._head[0]), inputs, self._weights, first)
        axes: dict[int, tuple[int, ...]] = {number: (0,) for number in (0, *range(first, len(inputs)))}
        return Graph(_DepthDecoderStep(self._head[0]), inputs, self._weights, 0, axes)
