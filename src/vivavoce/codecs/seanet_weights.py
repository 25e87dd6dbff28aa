"""Where the tensors of published checkpoints of the SEANet family stand in our codecs.

Two ways of naming: `transformers` (EncodecModel, MimiModel) and `original` (the encodec, audiocraft and moshi packages,
whose layers are numbered alike). Our chains number their parts in the same order, so that only names differ.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.time_norm import TimeNorm, WholeResidual
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import CheckpointError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Streaming
from vivavoce.nn.transformer import Transformer
from vivavoce.nn.whole_signal import BidirectionalLSTM
from vivavoce.quantizers import ResidualVectorQuantizer, SplitResidualVectorQuantizer

Style = Literal["transformers", "original"]

# Of a codebook in training only: what inference does not read.
IGNORED = ("embed_avg", "inited", "initialized", "_initialized")


class Published:
    """Tensors of a checkpoint, taken one by one by their names; weight normalisation is fused on the way."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str):
        self.tensors, self.where = dict(tensors), where
        self.taken: set[str] = set()

    def take(self, *names: str) -> Tensor:
        """The tensor that has one of the names; `CheckpointError` where none has."""
        for name in names:
            if name in self.tensors:
                self.taken.add(name)
                return self.tensors[name].float()
            for gain, direction in ((f"{name}_g", f"{name}_v"), _parametrized(name)):
                if gain in self.tensors and direction in self.tensors:
                    self.taken |= {gain, direction}
                    return torch._weight_norm(self.tensors[direction].float(), self.tensors[gain].float(), 0)
        raise CheckpointError(f"{self.where}: '{names[0]}' is missing; is this a checkpoint of another model, or cut?")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def finish(self) -> None:
        """`CheckpointError` if tensors are left over: the model would not be the published one."""
        left = [n for n in self.tensors if n not in self.taken and n.rsplit(".", 1)[-1] not in IGNORED]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise CheckpointError(f"{self.where}: nothing takes {', '.join(left[:3])}{more}: not the expected model")


def _parametrized(name: str) -> tuple[str, str]:
    stem, _, last = name.rpartition(".")
    return tuple(f"{stem}.parametrizations.{last}.original{i}" for i in (0, 1))  # type: ignore[return-value]


def fill(codec: Codec, tensors: Mapping[str, Tensor], style: Style, where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    source = Published(tensors, where)
    own: dict[str, Tensor] = {}
    for name, chain in (("encoder", codec.encoder), ("decoder", codec.decoder)):
        _chain(own, source, chain, name, style)
    _load(codec, own, where)
    _quantizer(codec, source, style)
    source.finish()


def _load(codec: Codec, own: Mapping[str, Tensor], where: str) -> None:
    shapes = {name: parameter.shape for name, parameter in codec.state_dict().items() if name in own}
    for name, tensor in own.items():
        if name not in shapes or tensor.shape != shapes[name]:
            wanted = tuple(shapes.get(name, ()))
            raise CheckpointError(f"{where}: {name} is {tuple(tensor.shape)} there, {wanted} by its configuration")
    codec.load_state_dict(dict(own), strict=False)


def _chain(own: dict[str, Tensor], source: Published, chain: Chain, stack: str, style: Style) -> None:
    number = 0
    for place, part in enumerate(chain):
        ours = f"{stack}.parts.{place}"
        if isinstance(part, Transformer):
            _transformer(own, source, part, ours, f"{stack}_transformer", style)
        elif isinstance(part, WholeFrames):
            continue
        elif stack == "encoder" and isinstance(part, Conv) and part.bias is None:
            theirs = "conv" if style == "transformers" else "conv.conv.conv"
            own[f"{ours}.weight"] = source.take(f"downsample.{theirs}.weight")
        elif stack == "decoder" and isinstance(part, ConvTranspose) and part.bias is None:
            theirs = "conv" if style == "transformers" else "convtr.convtr.convtr"
            own[f"{ours}.weight"] = source.take(f"upsample.{theirs}.weight")
        else:
            theirs = f"{stack}.{'layers' if style == 'transformers' else 'model'}.{number}"
            _layer(own, source, part, ours, theirs, style)
            number += 1


def _layer(own: dict[str, Tensor], source: Published, part: Streaming, ours: str, theirs: str, style: Style) -> None:
    """A convolution, residual unit or LSTM; activations have nothing to load."""
    if isinstance(part, Conv | ConvTranspose):
        inner = "conv" if isinstance(part, Conv) or style == "transformers" else "convtr"
        stem = f"{theirs}.{inner}" if style == "transformers" else f"{theirs}.{inner}.{inner}"
        for kind in ("weight", "bias"):
            own[f"{ours}.{kind}"] = source.take(f"{stem}.{kind}")
    elif isinstance(part, TimeNorm):
        _layer(own, source, part.inner, f"{ours}.inner", theirs, style)
        convolution = "conv" if isinstance(part.inner, Conv) else "convtr"
        stem = f"{theirs}.norm" if style == "transformers" else f"{theirs}.{convolution}.norm"
        for kind in ("weight", "bias"):
            own[f"{ours}.norm.{kind}"] = source.take(f"{stem}.{kind}")
    elif isinstance(part, LSTM | BidirectionalLSTM):
        for name, _ in part.lstm.named_parameters():
            own[f"{ours}.lstm.{name}"] = source.take(f"{theirs}.lstm.{name}")
    elif isinstance(part, Residual | WholeResidual):
        assert isinstance(part.inner, Chain)
        for place, layer in enumerate(part.inner):
            _layer(own, source, layer, f"{ours}.inner.parts.{place}", f"{theirs}.block.{place}", style)
        if part.shortcut is not None:
            _layer(own, source, part.shortcut, f"{ours}.shortcut", f"{theirs}.shortcut", style)


def _transformer(
    own: dict[str, Tensor], source: Published, part: Transformer, ours: str, theirs: str, style: Style
) -> None:
    for number in range(len(part.layers)):
        mine = f"{ours}.layers.{number}"
        if style == "transformers":
            stem = f"{theirs}.layers.{number}"
            qkv = [source.take(f"{stem}.self_attn.{kind}_proj.weight") for kind in "qkv"]
            own[f"{mine}.attention.qkv.weight"] = torch.cat(qkv)
            names = {
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
        else:
            stem = f"{theirs}.transformer.layers.{number}"
            names = {
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
        for name, choices in names.items():
            own[f"{mine}.{name}"] = source.take(*[f"{stem}.{choice}" for choice in choices])


def _quantizer(codec: Codec, source: Published, style: Style) -> None:
    quantizer = codec.quantizer
    if isinstance(quantizer, SplitResidualVectorQuantizer):
        halves = ("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer")
        if style == "original":
            halves = ("rvq_first", "rvq_rest")
        for half, name in zip((quantizer.semantic, quantizer.acoustic), halves):
            layers = f"quantizer.{name}.layers" if style == "transformers" else f"quantizer.{name}.vq.layers"
            _residual(half, source, f"quantizer.{name}", layers, style)
    elif isinstance(quantizer, ResidualVectorQuantizer):
        layers = "quantizer.layers" if style == "transformers" else "quantizer.vq.layers"
        _residual(quantizer, source, "quantizer", layers, style)
    else:
        raise CheckpointError(f"{source.where}: no published codec of this family has a {type(quantizer).__name__}")


@torch.no_grad()
def _residual(quantizer: ResidualVectorQuantizer, source: Published, stem: str, layers: str, style: Style) -> None:
    for mine, theirs in ((quantizer.input_projection, "input_proj"), (quantizer.output_projection, "output_proj")):
        if isinstance(mine, torch.nn.Linear):
            mine.weight.copy_(_fitting(source, f"{stem}.{theirs}.weight", (*mine.weight.shape, 1))[..., 0])
    for number, book in enumerate(quantizer.books()):
        name = f"{layers}.{number}.{'codebook' if style == 'transformers' else '_codebook'}"
        shape = tuple(book.embedding_sum.shape)
        sums = [f"{name}.embed_sum", f"{name}.embedding_sum"]
        if any(source.has(each) for each in sums):
            book.embedding_sum.copy_(_fitting(source, sums[0] if source.has(sums[0]) else sums[1], shape))
            book.cluster_usage.copy_(_fitting(source, f"{name}.cluster_usage", shape[:1]))
            book.initialized.fill_(1)
        else:
            book.load(_fitting(source, f"{name}.embed", shape), _fitting(source, f"{name}.cluster_size", shape[:1]))


def _fitting(source: Published, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = source.take(name)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{source.where}: {name} is {tuple(tensor.shape)} there, {shape} by its configuration")
    return tensor
