"""Small models in the form of Lyra V2's files, with random weights: what every test machine can read and run.

The graphs are built operator by operator as the published files have them: variables before blocks, 8-bit values
taken to float32 and back around the variables, transposed convolutions in groups whose overlaps are added in float32.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from codec_parity import spread_residual
from tflite_writer import Graph, write_tflite
from vivavoce.codecs.tflite import parse_tflite
from vivavoce.codecs.tflite_streaming import streaming_chain

SLOPE = 0.3
VALID = {"padding": 1, "stride_w": 1}


class Network(Graph):
    """A graph of frames [1, T, 1, D] with layers; `chance` draws weights and scales."""

    def __init__(self, seed: int):
        super().__init__("main")
        self.chance = np.random.default_rng(seed)
        self.variables: dict[str, tuple[int, ...]] = {}
        self.add("CALL_ONCE", [], [], subgraph=1)

    def start(self) -> Graph:
        """The subgraph that sets all variables to zero."""
        graph = Graph("start")
        for name, shape in self.variables.items():
            handle = graph.op("VAR_HANDLE", [], [], "resource", name=name)
            graph.add("ASSIGN_VARIABLE", [handle, graph.constant(np.zeros(shape))], [])
        return graph

    def variable(self, shape: Sequence[int]) -> tuple[int, int]:
        """Handle of a new variable, and what it holds."""
        name = f"variable {len(self.variables)}"
        self.variables[name] = tuple(shape)
        handle = self.op("VAR_HANDLE", [], [], "resource", name=name)
        return handle, self.op("READ_VARIABLE", [handle], shape)

    def scale_of(self, x: int) -> dict:
        return {name: self.tensors[x][name] for name in ("scales", "zeros")}

    def drawn(self, spread: float) -> dict:
        """A quantization for values up to about `spread`."""
        scale = np.float32(2 * spread / 255 * self.chance.uniform(0.9, 1.1))
        return {"scales": [scale], "zeros": [int(self.chance.integers(-60, 60))]}

    def kind(self, x: int) -> str:
        return self.tensors[x]["kind"]

    def dequantized(self, x: int) -> int:
        return self.op("DEQUANTIZE", [x], self.shape(x))

    def quantized(self, x: int, quantization: dict) -> int:
        return self.op("QUANTIZE", [x], self.shape(x), "int8", **quantization)

    def cut(self, x: int, first: int, last: int | None) -> int:
        """Frames from `first` (negative: from the end) to `last` (None: the end)."""
        _, frames, _, width = self.shape(x)
        kept = (frames if last is None else last) - first % frames
        begin, end = self.constant([0, first, 0, 0], "int32"), self.constant([0, last or 0, 0, 0], "int32")
        masks = {"begin": 13, "end": 15 if last is None else 13}
        step = self.constant([1, 1, 1, 1], "int32")
        return self.op("STRIDED_SLICE", [x, begin, end, step], [1, kept, 1, width], self.kind(x),
                       **self.scale_of(x), **masks)

    def window(self, x: int, past: int) -> int:
        """x with the last `past` frames of the signal before it."""
        if not past:
            return x
        _, frames, _, width = self.shape(x)
        handle, held = self.variable([1, past, 1, width])
        eight = self.kind(x) == "int8"
        source = self.dequantized(x) if eight else x
        y = self.op("CONCATENATION", [held, source], [1, past + frames, 1, width], axis=1)
        if eight:
            y = self.quantized(y, self.scale_of(x))
        # The published files have both forms.
        kept = self.cut(y, -past if len(self.variables) % 2 else frames, None)
        self.add("ASSIGN_VARIABLE", [handle, self.dequantized(kept) if eight else kept], [])
        return y

    def eight_bits(self, weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights of 8 bits and their scales along `axis`."""
        scales = (np.abs(weight).max(tuple(i for i in range(weight.ndim) if i != axis)) / 127).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return np.clip(np.round(weight / scales.reshape(shape)), -127, 127), scales

    def filters(self, x: int, weight: np.ndarray, bias: np.ndarray, axis: int) -> tuple[int, int]:
        """Weights and bias as constants in the arithmetic of x."""
        if self.kind(x) == "float32":
            return self.constant(weight), self.constant(bias)
        whole, scales = self.eight_bits(weight, axis)
        zeros = np.zeros(len(scales), int)
        finest = scales * np.float32(self.tensors[x]["scales"][0])
        biases = self.constant(np.round(bias / finest), "int32", scales=finest, zeros=zeros)
        return self.constant(whole, "int8", scales=scales, zeros=zeros, axis=axis), biases

    def conv(self, x: int, width: int, kernel: int, stride: int = 1, groups: int = 1, spread: float = 4.0) -> int:
        inputs = self.shape(x)[3]
        x = self.window(x, kernel - stride)
        inside = inputs // groups
        weight = self.chance.normal(size=(width, kernel, 1, inside)) * (kernel * inside) ** -0.5
        constants = self.filters(x, weight.astype(np.float32), self.chance.normal(size=width) * 0.2, 0)
        frames = (self.shape(x)[1] - kernel) // stride + 1
        beside = self.drawn(spread) if self.kind(x) == "int8" else {}
        return self.op("CONV_2D", [x, *constants], [1, frames, 1, width], self.kind(x), **beside, **VALID,
                       stride_h=stride, dilation_w=1, dilation_h=1)

    def depthwise(self, x: int, dilation: int) -> int:
        _, frames, _, width = self.shape(x)
        x = self.window(x, 2 * dilation)
        weight = self.chance.normal(size=(1, 3, 1, width)).astype(np.float32) * 0.7
        constants = self.filters(x, weight, self.chance.normal(size=width) * 0.1, 3)
        beside = self.drawn(4.0) if self.kind(x) == "int8" else {}
        return self.op("DEPTHWISE_CONV_2D", [x, *constants], [1, frames, 1, width], self.kind(x), **beside, **VALID,
                       stride_h=1, multiplier=1, dilation_w=1, dilation_h=dilation)

    def leaky(self, x: int) -> int:
        beside = self.drawn(3.0) if self.kind(x) == "int8" else {}
        return self.op("LEAKY_RELU", [x], self.shape(x), self.kind(x), **beside, alpha=SLOPE)

    def unit(self, x: int, dilation: int, groups: int) -> int:
        """A residual unit, in float32 or 8 bits as x is."""
        width = self.shape(x)[3]
        y = self.conv(self.depthwise(self.leaky(x), dilation), width, 1)
        y = self.conv(self.leaky(y), width, 1, groups=groups)
        beside = self.drawn(6.0) if self.kind(x) == "int8" else {}
        return self.op("ADD", [y, x], self.shape(x), self.kind(x), **beside)

    def mixed_unit(self, x: int, dilation: int, groups: int, early: bool) -> int:
        """A residual unit around float32 whose inside goes over to 8 bits: at its beginning (the decoder's), or before
        the second leaky ReLU (the encoder's)."""
        width = self.shape(x)[3]
        y = self.leaky(x)
        if early:
            y = self.quantized(y, self.drawn(4.0))
        y = self.conv(self.depthwise(y, dilation), width, 1)
        if not early:
            y = self.quantized(y, self.drawn(4.0))
        y = self.conv(self.leaky(y), width, 1, groups=groups)
        return self.op("ADD", [self.dequantized(y), x], self.shape(x))

    def transposed(self, x: int, width: int, kernel: int, stride: int, groups: int = 1) -> int:
        """A transposed convolution of the block; what reaches over is added to the next block, in float32."""
        _, frames, _, inputs = self.shape(x)
        pieces, own, over = [x], width // groups, kernel - stride
        if groups > 1:
            pieces = [self.tensor([1, frames, 1, inputs // groups], self.kind(x), **self.scale_of(x))
                      for _ in range(groups)]
            self.add("SPLIT", [self.constant(-1, "int32"), x], pieces, splits=groups)
        heads = []
        for piece in pieces:
            size = frames * stride + over
            handle, held = self.variable([1, over, 1, own])
            padded = self.op("CONCATENATION", [held, self.constant(np.zeros((1, frames * stride, 1, own)))],
                             [1, size, 1, own], axis=1)
            inside = inputs // groups
            weight = self.chance.normal(size=(own, kernel, 1, inside)) * (kernel / stride * inside) ** -0.5
            bias = self.chance.normal(size=own) * 0.2
            shape = self.constant([1, size, 1, own], "int32")
            options = {**VALID, "stride_h": stride}
            if self.kind(x) == "int8":
                scale = np.float32(np.abs(weight).max() / 127)
                finest = scale * np.float32(self.tensors[x]["scales"][0])
                constants = (
                    self.constant(np.round(weight / scale), "int8", scales=[scale], zeros=[0]),
                    self.constant(np.round(bias / finest), "int32", scales=[finest], zeros=[0]),
                )
                y = self.op("TRANSPOSE_CONV", [shape, constants[0], piece, constants[1]], [1, size, 1, own], "int8",
                            **self.drawn(4.0), **options)
                y = self.dequantized(y)
            else:
                y = self.op("TRANSPOSE_CONV", [shape, self.constant(weight), piece, self.constant(bias)],
                            [1, size, 1, own], **options)
            y = self.op("ADD", [y, padded], [1, size, 1, own])
            tail = self.op("SUB", [self.cut(y, -over, None), self.constant(bias)], [1, over, 1, own])
            self.add("ASSIGN_VARIABLE", [handle, tail], [])
            heads.append(self.cut(y, 0, frames * stride))
        if groups == 1:
            return heads[0]
        return self.op("CONCATENATION", heads, [1, frames * stride, 1, width], axis=-1)

    def written(self) -> bytes:
        return write_tflite([self, self.start()], {"serving_default": 0})


def encoder(seed: int = 0, width: int = 8, features: int = 6) -> bytes:
    """80 samples -> `features`: strides 4, 5, 2, 2."""
    net = Network(seed)
    wave = net.tensor([1, 80], name="samples")
    net.inputs = [wave]
    x = net.op("RESHAPE", [wave, net.constant([1, 80, 1, 1], "int32")], [1, 80, 1, 1])
    x = net.conv(x, width, 16, stride=4)
    for groups, stride in ((1, 5), (2, 2)):
        for dilation in (1, 3, 9):
            x = net.unit(x, dilation, groups)
        x = net.conv(net.leaky(x), 2 * net.shape(x)[3], 2 * stride, stride, groups)
    x = net.mixed_unit(x, 1, 4, early=False)
    x = net.quantized(x, net.drawn(6.0))
    for dilation in (3, 9):
        x = net.unit(x, dilation, 4)
    x = net.conv(net.leaky(x), 8 * width, 4, 2, 4, spread=2.0)
    x = net.conv(net.leaky(x), features, 3, groups=2, spread=2.0)
    x = net.op("RESHAPE", [x, net.constant([1, 1, features], "int32")], [1, 1, features], "int8", **net.scale_of(x))
    net.outputs = [net.dequantized(x)]
    return net.written()


def decoder(seed: int = 1, width: int = 8, features: int = 6) -> bytes:
    """`features` -> 80 samples."""
    net = Network(seed)
    frame = net.tensor([1, 1, features], name="frame")
    net.inputs = [frame]
    x = net.op("RESHAPE", [frame, net.constant([1, 1, 1, features], "int32")], [1, 1, 1, features])
    x = net.leaky(net.conv(x, 8 * width, 3, groups=2))
    x = net.transposed(net.quantized(x, net.drawn(4.0)), 4 * width, 4, 2, groups=4)
    x = net.mixed_unit(x, 1, 4, early=True)
    x = net.quantized(x, net.drawn(6.0))
    for dilation in (3, 9):
        x = net.unit(x, dilation, 4)
    x = net.transposed(net.leaky(x), 2 * width, 4, 2, groups=2)
    for dilation in (1, 3, 9):
        x = net.unit(x, dilation, 2)
    x = net.transposed(net.leaky(x), width, 10, 5)
    for dilation in (1, 3, 9):
        x = net.unit(x, dilation, 1)
    x = net.transposed(net.leaky(x), 1, 16, 4)
    net.outputs = [net.op("RESHAPE", [x, net.constant([1, 80], "int32")], [1, 80])]
    return net.written()


def quantizer(entries: np.ndarray) -> bytes:
    """Codebooks [levels, entries, width] as the published file has them: two graphs, encode and decode."""
    levels, size, width = entries.shape
    decode = Graph("decode")
    codes = decode.tensor([levels, 1, 1], "int32", name="encoding_indices")
    decode.inputs = [codes]
    known = decode.op("MAXIMUM", [codes, decode.constant(0, "int32")], [levels, 1, 1], "int32")
    flat = decode.op("RESHAPE", [codes, decode.constant([levels], "int32")], [levels], "int32")
    there = decode.op("NOT_EQUAL", [flat, decode.constant(-1, "int32")], [levels], "bool")
    there = decode.op("CAST", [there], [levels], source=6, target=0)
    ones = decode.constant([1, 1, 1], "int32")
    found: dict[int, int] = {}
    for level in sorted(range(levels), key=str):  # the published file has them in the order of their names
        ends = decode.constant([level, 0, 0], "int32"), decode.constant([level + 1, 0, 0], "int32")
        index = decode.op("STRIDED_SLICE", [known, *ends, ones], [1, 1], "int32", begin=6, end=6, shrink=1)
        ends = decode.constant([level], "int32"), decode.constant([level + 1], "int32")
        mask = decode.op("STRIDED_SLICE", [there, *ends, decode.constant([1], "int32")], [], shrink=1)
        entry = decode.op("GATHER", [decode.constant(entries[level]), index], [1, 1, width])
        found[level] = decode.op("MUL", [entry, mask], [1, 1, width])
    total = found[0]
    for level in range(1, levels):
        total = decode.op("ADD", [total, found[level]], [1, 1, width])
    decode.outputs = [total]

    encode = Graph("encode")
    used, frame = encode.tensor([], "int32", name="num_quantizers"), encode.tensor([1, 1, width], name="input_frames")
    encode.inputs = [used, frame]
    mask = encode.op("LESS", [encode.constant(np.arange(levels), "int32"), used], [levels], "bool")
    mask = encode.op("CAST", [mask], [levels], source=6, target=0)
    less = encode.op("SUB", [mask, encode.constant(1.0)], [levels])
    less = encode.op("CAST", [less], [levels], "int32", source=0, target=2)
    less = encode.op("RESHAPE", [less, encode.constant([levels, 1, 1], "int32")], [levels, 1, 1], "int32")
    last, three = encode.constant(-1, "int32"), encode.constant([1, 1, width], "int32")
    residual, chosen = frame, []
    for level in range(levels):
        squares = encode.op("SQUARED_DIFFERENCE", [residual, encode.constant(entries[level][None])], [1, size, width])
        index = encode.op("ARG_MIN", [encode.op("SUM", [squares, last], [1, size]), last], [1], "int32", index=2)
        hot = encode.op("ONE_HOT", [index, encode.constant(size, "int32"), encode.constant(1.0), encode.constant(0.0)],
                        [1, size], axis=-1)
        hot = encode.op("RESHAPE", [hot, encode.constant([1, 1, size], "int32")], [1, 1, size])
        ends = encode.constant([level], "int32"), encode.constant([level + 1], "int32")
        own = encode.op("STRIDED_SLICE", [mask, *ends, encode.constant([1], "int32")], [], shrink=1)
        chosen.append(encode.op("MUL", [hot, own], [1, 1, size]))
        entry = encode.op("GATHER", [encode.constant(entries[level]), index], [1, width])
        entry = encode.op("RESHAPE", [entry, three], [1, 1, width])
        step = encode.op("SUB", [entry, residual], [1, 1, width])
        step = encode.op("ADD", [residual, step], [1, 1, width])
        residual = encode.op("SUB", [residual, step], [1, 1, width])
    stack = encode.op("PACK", chosen, [levels, 1, 1, size], count=levels, axis=0)
    index = encode.op("ARG_MAX", [stack, last], [levels, 1, 1], "int32", index=2)
    encode.outputs = [encode.op("ADD", [index, less], [levels, 1, 1], "int32")]
    return write_tflite([decode, encode], {"decode": 0, "encode": 1})


@torch.no_grad()
def write_lyra(folder: Path, wave: torch.Tensor, levels: int = 20, size: int = 16, seed: int = 0) -> None:
    """A directory like Lyra V2's, its codebooks spread over the features of `wave` [1, 1, samples]."""
    folder.mkdir(exist_ok=True)
    heard = encoder(seed)
    latents = streaming_chain(parse_tflite(heard))(wave[:, 0, : wave.shape[-1] // 80 * 80, None]).flatten(0, 1)
    books = [torch.empty(size, latents.shape[1]) for _ in range(levels)]
    spread_residual(latents, books, seed)
    (folder / "soundstream_encoder.tflite").write_bytes(heard)
    (folder / "lyragan.tflite").write_bytes(decoder(seed + 1))
    (folder / "quantizer.tflite").write_bytes(quantizer(torch.stack(books).numpy()))
