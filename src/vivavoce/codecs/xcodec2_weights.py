"""Where the tensors of transformers' Xcodec2Model stand in our X-Codec 2."""

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor

from vivavoce.codecs.seanet_weights import queries_keys_values
from vivavoce.codecs.snake_weights import named, stack_pairs
from vivavoce.codecs.two_branches import TwoBranches
from vivavoce.codecs.xcodec2 import SIDES, Body, XCodec2
from vivavoce.codecs.xcodec_weights import semantic_encoder
from vivavoce.encoders.conformer_weights import load_weights, transformers_weights
from vivavoce.nn.pairs import Pair, Published, theirs_of, weight_and_bias
from vivavoce.nn.weights import load_module

SEMANTIC = "semantic_encoder."
_LINEAR = {
    "encoder.parts.0.join": "fc_encoder",
    "quantizer.input_projection": "quantizer.project_in",
    "quantizer.output_projection": "quantizer.project_out",
    "decoder.parts.0.function": "acoustic_decoder.fc",
    "decoder.parts.1": "acoustic_decoder.embed",
    "decoder.parts.3.function.0": "acoustic_decoder.norm",
    "decoder.parts.3.function.1": "acoustic_decoder.head.linear",
}
_ADAPTER = {"parts.0": "conv1", "parts.2.inner.parts.0": "conv2", "parts.2.inner.parts.2": "conv3", "parts.3": "conv4"}
_LAYER = {
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feedforward_norm.weight": "post_attention_layernorm.weight",
    "feedforward.inner.weight": "mlp.fc1.weight",
    "feedforward.out.weight": "mlp.fc2.weight",
}


def fill_xcodec2(codec: XCodec2, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    semantic = {name.removeprefix(SEMANTIC): value for name, value in tensors.items() if name.startswith(SEMANTIC)}
    source = Published({name: value for name, value in tensors.items() if not name.startswith(SEMANTIC)}, where)
    own = source.all(_pairs(codec))
    kept = {name: value for name, value in codec.state_dict().items() if ".semantic." in name}
    load_module(codec, {**kept, **own}, where)
    load_weights(semantic_encoder(codec), semantic, f"{where}: {SEMANTIC}*")
    source.finish()


def transformers_xcodec2(codec: XCodec2) -> dict[str, Tensor]:
    """The tensors of an X-Codec 2 as Xcodec2Model names them."""
    semantic = transformers_weights(semantic_encoder(codec), "wav2vec2-bert")
    found = theirs_of(_pairs(codec), codec.state_dict())
    return found | {f"{SEMANTIC}{name}": value for name, value in semantic.items()}


def _pairs(codec: XCodec2) -> Iterator[Pair]:
    """All but the semantic encoder."""
    branches, config = cast(TwoBranches, codec.encoder.parts[0]), codec.config
    stems = named("encoder", "acoustic_encoder", config.stack)
    yield from stack_pairs(branches.acoustic, "encoder.parts.0.acoustic", stems, "transformers")
    for mine, name in _ADAPTER.items():
        biased = name in ("conv2", "conv3")
        yield from weight_and_bias(f"encoder.parts.0.chain.{mine}", f"semantic_adapter.{name}", biased)
    for mine, name in _LINEAR.items():
        yield from weight_and_bias(mine, name)
    for mine, name in (("before", "prior_net"), ("behind", "post_net")):
        for number in range(SIDES):
            for part in ("norm1", "conv1", "norm2", "conv2"):
                there = f"acoustic_decoder.{name}.{number}.{part}"
                yield from weight_and_bias(f"decoder.parts.2.{mine}.{number}.{part}", there)
    transformer = cast(Body, codec.decoder.parts[2]).transformer
    for number in range(config.layers):
        mine, stem = f"decoder.parts.2.transformer.layers.{number}", f"acoustic_decoder.layers.{number}"
        yield queries_keys_values(transformer, f"{mine}.attention", f"{stem}.self_attn")
        for name, other in _LAYER.items():
            yield Pair(f"{mine}.{name}", [f"{stem}.{other}"])
