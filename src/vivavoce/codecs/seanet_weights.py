"""Where the tensors of published checkpoints of the SEANet family stand in our codecs.

Two ways of naming: `transformers` (EncodecModel, MimiModel) and `original` (the encodec, audiocraft and moshi packages,
whose layers are numbered alike). Our chains number their parts in the same order, so that only names differ.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from vivavoce.codecs.codebook_weights import read_codebook, theirs_of_codebook
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.time_norm import TimeNorm, WholeResidual
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import CheckpointError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.pairs import Pair, Published, theirs_of, weight_and_bias
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Streaming
from vivavoce.nn.transformer import Transformer
from vivavoce.nn.weights import load_part
from vivavoce.nn.whole_signal import BidirectionalLSTM
from vivavoce.quantizers import Quantizer, ResidualVectorQuantizer, SplitResidualVectorQuantizer

Style = Literal["transformers", "original"]


def fill(codec: Codec, tensors: Mapping[str, Tensor], style: Style, where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    source = Published(tensors, where)
    load_part(codec, source.all(pairs(codec, style)), where)
    for book, stem in _books(codec.quantizer, style, where):
        read_codebook(book, source, stem)
    source.finish()


def transformers_tensors(codec: Codec, weight_norm: bool) -> dict[str, Tensor]:
    """The tensors of a codec as EncodecModel (weight_norm: of its kind) or MimiModel names them."""
    found = theirs_of(pairs(codec, "transformers"), codec.state_dict(), weight_norm)
    split = isinstance(codec.quantizer, SplitResidualVectorQuantizer)
    for book, stem in _books(codec.quantizer, "transformers", "this codec"):
        found |= theirs_of_codebook(book, stem, "sums" if split else "entries")
    return found


def pairs(codec: Codec, style: Style) -> Iterator[Pair]:
    """All but the codebooks."""
    for name, chain in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        yield from chain_pairs(chain, name, style)
    for quantizer, ours, theirs, _ in _residual(codec.quantizer, style, "this codec"):
        for mine, name in (("input_projection", "input_proj"), ("output_projection", "output_proj")):
            if isinstance(getattr(quantizer, mine), nn.Linear):
                yield Pair(f"{ours}.{mine}.weight", [f"{theirs}.{name}.weight"], behind=1)


def chain_pairs(chain: Chain, stack: str, style: Style, prefix: str | None = None) -> Iterator[Pair]:
    """Of the encoder or the decoder (`stack`); prefix: what theirs is called, where not the same."""
    number, prefix = 0, prefix or stack
    for place, part in enumerate(chain):
        ours = f"{stack}.parts.{place}"
        if isinstance(part, Transformer):
            yield from _transformer(part, ours, f"{prefix}_transformer", style)
        elif isinstance(part, WholeFrames):
            continue
        elif stack == "encoder" and isinstance(part, Conv) and part.bias is None:
            theirs = "conv" if style == "transformers" else "conv.conv.conv"
            yield Pair(f"{ours}.weight", [f"downsample.{theirs}.weight"])
        elif stack == "decoder" and isinstance(part, ConvTranspose) and part.bias is None:
            theirs = "conv" if style == "transformers" else "convtr.convtr.convtr"
            yield Pair(f"{ours}.weight", [f"upsample.{theirs}.weight"])
        else:
            theirs = f"{prefix}.{'layers' if style == 'transformers' else 'model'}.{number}"
            yield from _layer(part, ours, theirs, style)
            number += 1


def _layer(part: Streaming, ours: str, theirs: str, style: Style) -> Iterator[Pair]:
    """A convolution, residual unit or LSTM; activations have nothing to load."""
    if isinstance(part, Conv | ConvTranspose):
        inner = "conv" if isinstance(part, Conv) or style == "transformers" else "convtr"
        stem = f"{theirs}.{inner}" if style == "transformers" else f"{theirs}.{inner}.{inner}"
        yield Pair(f"{ours}.weight", [f"{stem}.weight"], normed=True)
        yield Pair(f"{ours}.bias", [f"{stem}.bias"])
    elif isinstance(part, TimeNorm):
        yield from _layer(part.inner, f"{ours}.inner", theirs, style)
        convolution = "conv" if isinstance(part.inner, Conv) else "convtr"
        stem = f"{theirs}.norm" if style == "transformers" else f"{theirs}.{convolution}.norm"
        yield from weight_and_bias(f"{ours}.norm", stem)
    elif isinstance(part, LSTM | BidirectionalLSTM):
        for name, _ in part.lstm.named_parameters():
            yield Pair(f"{ours}.lstm.{name}", [f"{theirs}.lstm.{name}"])
    elif isinstance(part, Residual | WholeResidual):
        assert isinstance(part.inner, Chain)
        for place, layer in enumerate(part.inner):
            yield from _layer(layer, f"{ours}.inner.parts.{place}", f"{theirs}.block.{place}", style)
        if part.shortcut is not None:
            yield from _layer(part.shortcut, f"{ours}.shortcut", f"{theirs}.shortcut", style)


_TRANSFORMERS = {
    "attention.out.weight": ["self_attn.o_proj.weight"],
    "attention_norm.weight": ["input_layernorm.weight"],
    "attention_norm.bias": ["input_layernorm.bias"],
    "feedforward_norm.weight": ["post_attention_layernorm.weight"],
    "feedforward_norm.bias": ["post_attention_layernorm.bias"],
    "feedforward.inner.weight": ["mlp.fc1.weight"],
    "feedforward.out.weight": ["mlp.fc2.weight"],
    "attention_scale.scale": ["self_attn_layer_scale.scale"],
    "feedforward_scale.scale": ["mlp_layer_scale.scale"],
}
_ORIGINAL = {
    # The published file has the first name, the package's own newer files the second.
    "attention.qkv.weight": ["self_attn.in_proj_weight", "self_attn.in_projs.0.weight"],
    "attention.out.weight": ["self_attn.out_proj.weight", "self_attn.out_projs.0.weight"],
    "attention_norm.weight": ["norm1.weight"],
    "attention_norm.bias": ["norm1.bias"],
    "feedforward_norm.weight": ["norm2.weight"],
    "feedforward_norm.bias": ["norm2.bias"],
    "feedforward.inner.weight": ["linear1.weight"],
    "feedforward.out.weight": ["linear2.weight"],
    "attention_scale.scale": ["layer_scale_1.scale"],
    "feedforward_scale.scale": ["layer_scale_2.scale"],
}


def _transformer(part: Transformer, ours: str, theirs: str, style: Style) -> Iterator[Pair]:
    for number in range(len(part.layers)):
        mine = f"{ours}.layers.{number}"
        if style == "transformers":
            stem = f"{theirs}.layers.{number}"
            yield queries_keys_values(part, f"{mine}.attention", f"{stem}.self_attn")
        else:
            stem = f"{theirs}.transformer.layers.{number}"
        for name, choices in (_TRANSFORMERS if style == "transformers" else _ORIGINAL).items():
            yield Pair(f"{mine}.{name}", [f"{stem}.{choice}" for choice in choices])


def queries_keys_values(part: Transformer, ours: str, theirs: str) -> Pair:
    """One matrix here, three there."""
    config = part.config
    size = config.head_dim or config.width // config.heads
    rows = [size * config.heads, *[size * (config.kv_heads or config.heads)] * 2]
    return Pair(f"{ours}.qkv.weight", [f"{theirs}.{kind}_proj.weight" for kind in "qkv"], rows=rows)


def _residual(
    quantizer: Quantizer, style: Style, where: str
) -> Iterator[tuple[ResidualVectorQuantizer, str, str, str]]:
    """The residual quantizers of a codec; what each is called here and there, and its layers there."""
    layers = "layers" if style == "transformers" else "vq.layers"
    if isinstance(quantizer, SplitResidualVectorQuantizer):
        halves = ("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer")
        if style == "original":
            halves = ("rvq_first", "rvq_rest")
        for half, name in zip(("semantic", "acoustic"), halves):
            stem = f"quantizer.{name}"
            yield getattr(quantizer, half), f"quantizer.{half}", stem, f"{stem}.{layers}"
    elif isinstance(quantizer, ResidualVectorQuantizer):
        yield quantizer, "quantizer", "quantizer", f"quantizer.{layers}"
    else:
        raise CheckpointError(f"{where}: no published codec of this family has a {type(quantizer).__name__}")


def _books(quantizer: Quantizer, style: Style, where: str) -> Iterator[tuple]:
    """Codebooks, and what each is called there."""
    own = "codebook" if style == "transformers" else "_codebook"
    for residual, _, _, layers in _residual(quantizer, style, where):
        for number, book in enumerate(residual.books()):
            yield book, f"{layers}.{number}.{own}"
