"""The streaming layers by name, at the shapes that published systems give them.

One property test runs over all: any chunking and any padded batch give what the whole signal gives, rows can be held
and reset, and what a module publishes about itself is true. A new layer joins by an entry here.
"""

from collections.abc import Callable

from torch import nn

from vivavoce.nn.antialiased import antialiased_snake
from vivavoce.nn.attention import Attention
from vivavoce.nn.band_split import Elastic, band_split_block
from vivavoce.nn.chunks import ChunkLayer, WholeChunks
from vivavoce.nn.convnext_stack import convnext_block
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.elu import ELU
from vivavoce.nn.focal import ChunkFeedForward, focal_block
from vivavoce.nn.handed_on import HandsOn
from vivavoce.nn.harmonics import HarmonicISTFT
from vivavoce.nn.image_convolution import ImageConv, ImageConvTranspose
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.local_attention import LocalAttention
from vivavoce.nn.logmel import StreamingLogMel
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.mdct import MDCT, InverseMDCT
from vivavoce.nn.noise import Noise
from vivavoce.nn.parallel import Sum
from vivavoce.nn.resampling import resampling
from vivavoce.nn.residual import Residual
from vivavoce.nn.rope import Rope
from vivavoce.nn.side_inputs import SideInputs
from vivavoce.nn.snake import Snake
from vivavoce.nn.stacking import Stack, Unstack
from vivavoce.nn.stft import STFT
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.nn.whole_signal import BidirectionalLSTM


def _mimi_transformer(layers: int, width: int, heads: int, context: int) -> Transformer:
    options = {"positions": "rope", "rope_interleaved": True, "bias": False, "layer_scale": 0.5}
    return Transformer(TransformerConfig.classic(layers, width, heads, context=context, **options))


def _open(block: Streaming) -> Streaming:
    """With gains that are not the identity any more."""
    for parameter in block.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    return block


MODULES: dict[str, Callable[[], Streaming]] = {
    # Convolutions: EnCodec's and Mimi's stacks, wav2vec 2.0's front end, HiFi-GAN's units.
    "conv first": lambda: Conv(1, 8, 7),
    "conv dilated": lambda: Conv(4, 6, 3, dilation=9),
    "conv strided": lambda: Conv(4, 6, 16, stride=8),
    "conv reflected": lambda: Conv(4, 6, 7, pad_mode="reflect"),
    "conv reflected, strided": lambda: Conv(4, 6, 10, stride=5, pad_mode="reflect"),
    "conv reflected, dilated": lambda: Conv(4, 6, 3, dilation=4, pad_mode="reflect"),
    "conv replicated, strided": lambda: Conv(6, 6, 4, stride=2, pad_mode="replicate", bias=False),
    "conv centred": lambda: Conv(4, 6, 7, left=3, right=3),
    "conv centred, dilated": lambda: Conv(4, 6, 11, dilation=5, left=25, right=25),
    "conv centred, reflected": lambda: Conv(4, 6, 7, left=3, right=3, pad_mode="reflect"),
    "conv centred, reflected, strided": lambda: Conv(4, 6, 16, stride=8, left=4, right=4, pad_mode="reflect"),
    "conv without padding": lambda: Conv(1, 6, 10, stride=5, left=0, complete=False),
    "conv grouped": lambda: Conv(8, 8, 128, groups=4, left=64, right=63),
    "conv depthwise": lambda: Conv(6, 6, 7, groups=6, left=3, right=3),
    "conv pointwise": lambda: Conv(4, 6, 1),
    "transposed": lambda: ConvTranspose(4, 6, 16, 8),
    "transposed, odd": lambda: ConvTranspose(4, 6, 11, 5, left=3, right=3),
    "transposed, centred": lambda: ConvTranspose(4, 6, 10, 5, left=3, right=2),
    "transposed, cut at the left": lambda: ConvTranspose(4, 6, 8, 4, left=4, right=0),
    "transposed, depthwise": lambda: ConvTranspose(6, 6, 4, 2, groups=6, bias=False),
    # Convolutions over images, FunCodec's.
    "image conv": lambda: ImageConv(2, 4, 9, (7, 7), pad_mode="reflect"),
    "image conv, strided": lambda: ImageConv(4, 6, 9, (8, 4), (4, 2), groups=2, left=1, right=1),
    "image conv, dilated": lambda: ImageConv(3, 2, 2, (3, 3), dilation=(1, 2), pad_mode="replicate"),
    "image transposed": lambda: ImageConvTranspose(4, 2, 2, (8, 4), (4, 2), groups=2, left=1, right=1),
    "image transposed, causal": lambda: ImageConvTranspose(2, 3, 3, (4, 2), (2, 1)),
    # Around them.
    "residual, causal": lambda: Residual(Chain(Pointwise(ELU(), 6), Conv(6, 3, 3, dilation=2), Conv(3, 6, 1))),
    "residual, reflected": lambda: Residual(
        Chain(Conv(6, 3, 3, dilation=3, pad_mode="reflect"), Conv(3, 6, 3, pad_mode="reflect")), Conv(6, 6, 1)
    ),
    "residual, centred": lambda: Residual(Conv(6, 6, 7, left=3, right=3)),
    "residual, snake": lambda: Residual(
        Chain(Pointwise(Snake(6), 6), Conv(6, 6, 7, dilation=3, left=9, right=9), Pointwise(Snake(6), 6), Conv(6, 6, 1))
    ),
    "snake without aliasing": lambda: antialiased_snake(6),
    "noise": lambda: Noise(6, number=1),
    "sum of kernels": lambda: Sum([Conv(6, 6, k, left=k // 2, right=k // 2) for k in (3, 7, 11)], scale=1 / 3),
    "down and up": lambda: Chain(
        Conv(2, 4, 8, stride=4), Pointwise(ELU(), 4), Conv(4, 6, 6, stride=3), ConvTranspose(6, 4, 6, 3),
        ConvTranspose(4, 2, 8, 4),
    ),
    "up, then centred": lambda: Chain(ConvTranspose(4, 4, 8, 4, left=2, right=2), Conv(4, 2, 7, left=3, right=3)),
    "handed on": lambda: HandsOn(
        Chain(Conv(4, 6, 5, left=3, right=1), ConvTranspose(6, 5, 4, 2), Conv(5, 5, 5, left=2, right=2))
    ),
    "side inputs": lambda: SideInputs(
        Conv(3, 4, 5),
        [Conv(3, 4, 2), Conv(3, 6, 8, 4)],
        [Chain(Residual(Conv(4, 4, 3)), Conv(4, 6, 8, 4)), Conv(6, 5, 6, 3)],
    ),
    # Memories.
    "lstm": lambda: LSTM(6, layers=2),
    "lstm without skip": lambda: LSTM(6, skip=False),
    "lstm, both ways": lambda: BidirectionalLSTM(6, layers=2),
    "band-split recurrence": lambda: Elastic([band_split_block(4, 3) for _ in range(2)]),
    # Transformers: Mimi's with its context reached, Llama's without a limit, one that is not causal.
    "transformer, short context": lambda: _mimi_transformer(2, 16, 2, context=5),
    "transformer, Mimi's context": lambda: _mimi_transformer(1, 16, 2, context=250),
    "transformer, unlimited": lambda: Transformer(TransformerConfig(2, 16, 4, kv_heads=2)),
    "transformer, whole signal": lambda: Transformer(TransformerConfig.classic(1, 16, 2, causal=False)),
    "attention, window, grouped": lambda: Attention(16, 4, kv_heads=2, context=4, rope=Rope(4), qk_norm=1e-6),
    "attention, whole signal": lambda: Attention(16, 2, causal=False),
    "attention, local": lambda: LocalAttention(16, window=5, head_dim=8),
    "chunks of a transformer": lambda: Chain(WholeChunks(8, 4), ChunkLayer(8, 2, 12, 4, left=2)),
    "chunks of a transformer, all before them": lambda: Chain(
        WholeChunks(8, 3), *(ChunkLayer(8, 2, 12, 3, positions="relative") for _ in range(2))
    ),
    # Fewer frames.
    "stack": lambda: Stack(4, 3),
    "stack, filled": lambda: Stack(4, 5, complete=True),
    "unstack": lambda: Unstack(12, 3),
    "stack, unstack": lambda: Chain(Conv(4, 4, 7, left=3, right=3), Stack(4, 4, complete=True), Unstack(16, 4)),
    # Context without attention.
    "focal block": lambda: Chain(*focal_block(6, 3, 2, 2, causal=False, past=5)),
    "focal block, causal": lambda: Chain(*focal_block(6, 3, 2, 2, causal=True, past=5)),
    "chunk feed-forward": lambda: ChunkFeedForward(4, 3),
    "ConvNeXt V2": lambda: _open(convnext_block(6, 8, response=True)),
    "ConvNeXt V2, causal": lambda: _open(convnext_block(6, 8, ahead=0, response=True)),
    # Front end and head.
    "resampling, down": lambda: resampling(3, 2),
    "resampling, up": lambda: resampling(2, 5),
    "STFT": lambda: STFT(32, 8),
    "STFT, phasors": lambda: STFT(32, 8, causal=True, form="phasors"),
    "MDCT": lambda: MDCT(8),
    "inverse MDCT": lambda: InverseMDCT(8),
    "inverse STFT": lambda: StreamingISTFT(fft_size=64, hop=16),
    "inverse STFT of parts": lambda: StreamingISTFT(fft_size=64, hop=16, parts=True),
    "harmonics and noise": lambda: HarmonicISTFT(fft_size=64, hop=16, sample_rate=16000),
    "log-mel": lambda: StreamingLogMel(sample_rate=16000, window=400, hop=160, mels=40),
}


def input_width(module: Streaming) -> int:
    """Width of the frames that a module of the registry takes."""
    first: nn.Module = module
    while not hasattr(first, "inputs"):
        if isinstance(first, Chain):
            first = first.parts[0]
        elif isinstance(first, (Residual, HandsOn)):
            first = first.inner
        elif isinstance(first, SideInputs):
            first = first.first
        elif isinstance(first, Sum):
            first = first.branches[0]
        else:
            return 1 if isinstance(first, StreamingLogMel) else first.width  # type: ignore[return-value]
    return first.inputs  # type: ignore[return-value]
