"""Lyra V2: Google's SoundStream for speech at 16 kHz, from its published TFLite files, to the last bit.

Sources: google/lyra, lyra/model_coeffs and lyra/{soundstream_encoder,residual_vector_quantizer,lyra_gan_model}.cc;
SoundStream (arXiv:2107.03312). A frame is 20 ms, 320 samples; all is causal, so that a frame's codes are there with it.

Encoder, 320 samples -> 64 features: a convolution of 64 taps, stride 16, to 64 channels; three blocks of 64, 128 and
256 channels, each of three residual units and a convolution of 2 x stride taps, strides 5, 2, 2, to twice the
channels; a last one of 3 taps. A residual unit: depthwise, 3 taps, dilation 1, 3, 9; pointwise; pointwise again.
Leaky ReLUs (0.3) stand before every convolution but the first and those behind a depthwise one. What hears more than
64 channels has groups of 64 (the last: of 128), but for the pointwise ones behind depthwise ones.

Decoder: the mirror image. A convolution of 3 taps to 512 channels (4 groups), transposed ones of strides 2, 2, 5 (4, 2
and 1 groups) with three residual units behind each, and one of 64 taps, stride 16, to the waveform.

8 bits: in the encoder from the first residual unit of 256 channels (behind its first pointwise convolution) to the
features; in the decoder from 512 channels to the transposed convolution to 128. Weights have a scale for each output
channel, those of transposed convolutions one for each group. All else is float32. A transposed convolution is computed
for 20 ms at a time, and what reaches beyond them is added to the next in float32.

Quantizer: 46 codebooks of 16 entries in series. 16, 30 and 46 of them are the published 3.2, 6 and 9.2 kbit/s.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.tflite import MISFITS, TFLiteGraph, TFLiteModel, read_tflite
from vivavoce.codecs.tflite_layers import ordered_sum
from vivavoce.codecs.tflite_streaming import streaming_chain
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.nn.streaming import Chain, lengths_of, valid
from vivavoce.quantizers import ResidualVectorQuantizer

ENCODER, QUANTIZER, DECODER = "soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite"
SAMPLE_RATE = 16000
CODEBOOKS = 16  # what Google's encoder uses unless told otherwise: 3.2 kbit/s


class OrderedResidualQuantizer(ResidualVectorQuantizer):
    """A residual quantizer that searches as the file's graph computes: distances are sums of squares in order, and
    what is left over is r - (r + (entry - r)), as the training's straight-through sum left it in the graph."""

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        residual, codes = latents.float().flatten(0, 1).t().contiguous(), []
        for book in self.books()[: self.levels_used(codebooks)]:
            entries = book.embedding.t().contiguous()
            codes.append(ordered_sum((residual[..., None] - entries[:, None]).square()).argmin(1))
            residual = residual - (residual + (entries[:, codes[-1]] - residual))
        grid = torch.stack(codes).unflatten(1, latents.shape[:2]).transpose(0, 1).contiguous()
        return grid if lengths is None else grid * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]


class LyraCodec(Codec):
    """Lyra V2 as it was published: for encoding and decoding. Its arithmetic is float32's: a cast changes nothing."""

    def forward(self, wave, lengths=None):
        """Raises `RequestError`: there is no gradient through 8 bits."""
        raise RequestError("Lyra V2 is loaded as it was published, and is not trained: use encode and decode")

    def _apply(self, fn, recurse=True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(device=moved.device) if moved.dtype != tensor.dtype else moved

        return super()._apply(keep_float32, recurse)


def is_lyra(folder: Path) -> bool:
    """Whether a directory has Lyra's encoder."""
    return (folder / ENCODER).is_file()


def load_lyra(folder: Path) -> LyraCodec:
    """The codec of a directory with the three files. `CheckpointError` where one is missing or is not of Lyra V2."""
    heard = streaming_chain_of(folder / ENCODER)
    spoken = streaming_chain_of(folder / DECODER)
    path = folder / QUANTIZER
    model = read_tflite(path)
    try:
        entries = torch.from_numpy(codebooks(model))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    count, size, width = entries.shape
    if not heard.hop * spoken.hop == 1 or heard.hop.denominator != 1 or spoken.width != 1:
        raise CheckpointError(f"{folder}: the encoder's hop {heard.hop} is not undone by the decoder's {spoken.hop}")
    if not heard.width == width == inputs_of(spoken) or inputs_of(heard) != 1:
        widths = f"{heard.width} features of the encoder, {width} of the quantizer, {inputs_of(spoken)} of the decoder"
        raise CheckpointError(f"{folder}: {widths}")
    quantizer = OrderedResidualQuantizer(width, count, size, smoothing=0.0)
    for book, own in zip(quantizer.books(), entries):
        book.load(own)
    whole = WholeFrames(int(heard.hop), 1)
    codec = LyraCodec(Chain(whole, *heard), quantizer, spoken, SAMPLE_RATE)
    codec.codebooks = min(CODEBOOKS, count)
    return codec.eval()


def streaming_chain_of(path: Path) -> Chain:
    """`streaming_chain` of a file, which errors name."""
    model = read_tflite(path)
    try:
        return streaming_chain(model)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def inputs_of(chain: Chain) -> int:
    """Width of what the first layer hears; 0 if it is no convolution."""
    return int(getattr(next(iter(chain), None), "inputs", 0))


def codebooks(model: TFLiteModel) -> np.ndarray:
    """The quantizer's entries [codebooks, entries, width], which its two graphs have both."""
    found = {}
    for name, levels in (("encode", _searched), ("decode", _summed)):
        if name not in model.signatures:
            raise CheckpointError(f"a quantizer with the signatures encode and decode is expected, '{name}' is missing")
        try:
            found[name] = levels(model.graphs[model.signatures[name]])
        except MISFITS as error:
            raise CheckpointError(f"the quantizer's graph '{name}': {error}") from error
    first, second = found["encode"], found["decode"]
    if not first or len({entries.shape for entries in first}) != 1:
        raise CheckpointError(f"{len(first)} codebooks of shapes {sorted({entries.shape for entries in first})}")
    if len(first) != len(second) or not all(np.array_equal(a, b) for a, b in zip(first, second)):
        raise CheckpointError("encoder and decoder of the quantizer do not have the same codebooks")
    return np.stack(first)


def _searched(graph: TFLiteGraph) -> list[np.ndarray]:
    """Codebooks by which a frame is encoded, in the order in which they quantize what is left over."""
    found: list[np.ndarray] = []
    taken: list[np.ndarray] = []
    for operator in graph.operators:
        if operator.kind in ("SQUARED_DIFFERENCE", "GATHER"):
            searched = operator.kind == "SQUARED_DIFFERENCE"
            data = graph.tensors[operator.inputs[1 if searched else 0]].data
            if data is None or data.ndim != (3 if searched else 2) or (searched and len(data) != 1):
                raise CheckpointError("distances to what is no codebook, or entries of none")
            (found if searched else taken).append(data[0] if searched else data)
    # What the last one leaves over nobody needs.
    if len(taken) not in (len(found), len(found) - 1) or not all(map(np.array_equal, taken, found)):
        raise CheckpointError("what is searched for are not the entries that are taken")
    return found


def _summed(graph: TFLiteGraph) -> list[np.ndarray]:
    """Codebooks by which a frame is decoded: that of level n is looked up at index n of the codes."""
    slices = {operator.outputs[0]: operator for operator in graph.operators if operator.kind == "STRIDED_SLICE"}
    levels: dict[int, np.ndarray] = {}
    for operator in graph.operators:
        if operator.kind == "GATHER":
            table, index = operator.inputs
            data = graph.tensors[table].data
            begin = graph.tensors[slices[index].inputs[1]].data if index in slices else None
            if data is None or begin is None or not begin.size:
                raise CheckpointError("a codebook is looked up at no level of the codes")
            levels[int(begin.flat[0])] = data
    if sorted(levels) != list(range(len(levels))):
        raise CheckpointError(f"codebooks at the levels {sorted(levels)}")
    return [levels[level] for level in sorted(levels)]
