"""Where the tensors of transformers' Xcodec2Model stand in our X-Codec 2."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vivavoce.codecs.seanet_weights import Published
from vivavoce.codecs.snake_weights import named, take_parts
from vivavoce.codecs.two_branches import TwoBranches
from vivavoce.codecs.xcodec2 import SIDES, XCodec2
from vivavoce.encoders.conformer_weights import load_weights
from vivavoce.nn.weights import load_module

_LAYER = {
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feedforward_norm.weight": "post_attention_layernorm.weight",
    "feedforward.inner.weight": "mlp.fc1.weight",
    "feedforward.out.weight": "mlp.fc2.weight",
}


def fill_xcodec2(codec: XCodec2, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    prefix = "semantic_encoder."
    semantic = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    source = Published({name: value for name, value in tensors.items() if not name.startswith(prefix)}, where)
    branches, config = codec.encoder.parts[0], codec.config
    assert isinstance(branches, TwoBranches)
    own: dict[str, Tensor] = {}
    ours, theirs = "encoder.parts.0", "semantic_adapter"
    take_parts(
        own, source, branches.acoustic, f"{ours}.acoustic", named("encoder", "acoustic_encoder", config.stack),
        "transformers",
    )  # fmt: skip
    for mine, name in (("parts.0", "conv1"), ("parts.2.inner.parts.0", "conv2"), ("parts.2.inner.parts.2", "conv3"),
                       ("parts.3", "conv4")):
        own[f"{ours}.chain.{mine}.weight"] = source.take(f"{theirs}.{name}.weight")
        if name in ("conv2", "conv3"):
            own[f"{ours}.chain.{mine}.bias"] = source.take(f"{theirs}.{name}.bias")
    for mine, name in (
        (f"{ours}.join", "fc_encoder"),
        ("quantizer.input_projection", "quantizer.project_in"),
        ("quantizer.output_projection", "quantizer.project_out"),
        ("decoder.parts.0.function", "acoustic_decoder.fc"),
        ("decoder.parts.1", "acoustic_decoder.embed"),
        ("decoder.parts.3.function.0", "acoustic_decoder.norm"),
        ("decoder.parts.3.function.1", "acoustic_decoder.head.linear"),
    ):
        for kind in ("weight", "bias"):
            own[f"{mine}.{kind}"] = source.take(f"{name}.{kind}")
    for mine, name in (("before", "prior_net"), ("behind", "post_net")):
        for number in range(SIDES):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                for kind in ("weight", "bias"):
                    tensor = source.take(f"acoustic_decoder.{name}.{number}.{part}.{kind}")
                    own[f"decoder.parts.2.{mine}.{number}.{part}.{kind}"] = tensor
    for number in range(config.layers):
        mine, stem = f"decoder.parts.2.transformer.layers.{number}", f"acoustic_decoder.layers.{number}"
        rows = [source.take(f"{stem}.self_attn.{kind}_proj.weight") for kind in "qkv"]
        own[f"{mine}.attention.qkv.weight"] = torch.cat(rows)
        own |= {f"{mine}.{name}": source.take(f"{stem}.{other}") for name, other in _LAYER.items()}
    if source.has("acoustic_decoder.head.window"):  # which is computed
        source.take("acoustic_decoder.head.window")
    kept = {name: value for name, value in codec.state_dict().items() if ".semantic." in name}
    load_module(codec, {**kept, **own}, where)
    load_weights(branches.semantic, semantic, f"{where}: {prefix}*")  # type: ignore[arg-type]
    source.finish()
