"""Where the tensors of transformers' XcodecModel stand in our X-Codec."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from vivavoce.codecs.codebook_weights import read_codebook, theirs_of_codebook
from vivavoce.codecs.snake_weights import named, stack_pairs
from vivavoce.codecs.two_branches import TwoBranches
from vivavoce.codecs.xcodec import XCodec, XCodecConfig
from vivavoce.encoders.pretrained import load_weights, transformers_weights
from vivavoce.nn.pairs import Pair, Published, theirs_of, weight_and_bias
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain
from vivavoce.nn.weights import load_module

SEMANTIC = "semantic_model."


def fill_xcodec(codec: XCodec, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    semantic = {name.removeprefix(SEMANTIC): value for name, value in tensors.items() if name.startswith(SEMANTIC)}
    source = Published({name: value for name, value in tensors.items() if not name.startswith(SEMANTIC)}, where)
    own = source.all(_pairs(codec))
    for number, book in enumerate(codec.quantizer.books()):  # type: ignore[operator]
        read_codebook(book, source, _book(number))
    kept = {name: value for name, value in codec.state_dict().items() if ".semantic." in name or "quantizer" in name}
    load_module(codec, {**kept, **own}, where)
    load_weights(semantic_encoder(codec), semantic, f"{where}: {SEMANTIC}*")
    source.finish()


def transformers_xcodec(codec: XCodec, family: str) -> dict[str, Tensor]:
    """The tensors of an X-Codec as XcodecModel names them; family: model_type of its semantic encoder."""
    found = theirs_of(_pairs(codec), codec.state_dict())
    for number, book in enumerate(codec.quantizer.books()):  # type: ignore[operator]
        found |= theirs_of_codebook(book, _book(number), "entries")
    semantic = transformers_weights(semantic_encoder(codec), family)
    return found | {f"{SEMANTIC}{name}": value for name, value in semantic.items()}


def semantic_encoder(codec: Any) -> Any:
    """The frozen encoder of a codec of two branches."""
    return cast(TwoBranches, codec.encoder.parts[0]).semantic


def _book(number: int) -> str:
    return f"quantizer.quantizers.{number}.codebook"


def _pairs(codec: XCodec) -> Iterator[Pair]:
    """All but the codebooks and the semantic encoder."""
    branches, config = cast(TwoBranches, codec.encoder.parts[0]), codec.config
    stems = named("encoder", "acoustic_encoder", config)
    yield from stack_pairs(branches.acoustic, "encoder.parts.0.acoustic", stems, "transformers")
    yield from weight_and_bias("encoder.parts.0.join", "fc")
    yield from weight_and_bias("decoder.parts.0.function", "fc2")
    yield from weight_and_bias("feature_decoder.parts.0.function", "fc1")
    yield from _convolutions(branches.chain, "encoder.parts.0.chain", _heard(config))
    yield from _convolutions(codec.feature_decoder, "feature_decoder", _said(config))
    stems = named("decoder", "acoustic_decoder", config)
    yield from stack_pairs(codec.decoder, "decoder", stems, "transformers", first=1)


def _convolutions(chain: Chain, ours: str, stems: Iterator[str]) -> Iterator[Pair]:
    """Convolutions and residual units of a semantic chain, behind a linear map where there is one."""
    for place, part in enumerate(chain):
        if isinstance(part, Residual):
            stem = next(stems)
            for inside, name in ((1, "conv1"), (3, "conv2")):
                yield from weight_and_bias(f"{ours}.parts.{place}.inner.parts.{inside}", f"{stem}.{name}", bias=False)
        elif hasattr(part, "kernel"):
            yield from weight_and_bias(f"{ours}.parts.{place}", next(stems), part.bias is not None)


def _heard(config: XCodecConfig) -> Iterator[str]:
    yield "encoder_semantic.conv"
    for block in range(config.blocks):
        stem = f"encoder_semantic.conv_blocks.{block}"
        yield from (f"{stem}.res_units.{unit}" for unit in range(len(config.block_dilations)))
        yield f"{stem}.conv"


def _said(config: XCodecConfig) -> Iterator[str]:
    yield "decoder_semantic.conv1"
    for block in range(config.blocks):
        stem = f"decoder_semantic.conv_blocks.{block}"
        yield f"{stem}.conv"
        yield from (f"{stem}.res_units.{unit}" for unit in range(len(config.block_dilations)))
    yield "decoder_semantic.conv2"
