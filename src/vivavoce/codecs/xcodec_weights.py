"""Where the tensors of transformers' XcodecModel stand in our X-Codec."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from vivavoce.codecs.seanet_weights import Published
from vivavoce.codecs.snake_weights import named, take_parts
from vivavoce.codecs.two_branches import TwoBranches
from vivavoce.codecs.xcodec import XCodec, XCodecConfig
from vivavoce.encoders.pretrained import load_weights
from vivavoce.errors import CheckpointError
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain
from vivavoce.nn.weights import load_module


def fill_xcodec(codec: XCodec, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published checkpoint into a codec of its shape. Raises `CheckpointError` for what does not fit."""
    prefix = "semantic_model."
    semantic = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    source = Published({name: value for name, value in tensors.items() if not name.startswith(prefix)}, where)
    branches, config = codec.encoder.parts[0], codec.config
    assert isinstance(branches, TwoBranches)
    own: dict[str, Tensor] = {}
    stems = named("encoder", "acoustic_encoder", config)
    take_parts(own, source, branches.acoustic, "encoder.parts.0.acoustic", stems, "transformers")
    for kind in ("weight", "bias"):
        own[f"encoder.parts.0.join.{kind}"] = source.take(f"fc.{kind}")
        own[f"decoder.parts.0.function.{kind}"] = source.take(f"fc2.{kind}")
        own[f"feature_decoder.parts.0.function.{kind}"] = source.take(f"fc1.{kind}")
    _convolutions(own, source, branches.chain, "encoder.parts.0.chain", _heard(config))
    _convolutions(own, source, codec.feature_decoder, "feature_decoder", _said(config))
    _decoder(own, source, codec, config)
    for number, book in enumerate(codec.quantizer.books()):  # type: ignore[operator]
        stem = f"quantizer.quantizers.{number}.codebook"
        entries = source.take(f"{stem}.embed")
        usage = source.take(f"{stem}.cluster_size")
        if entries.shape != book.embedding_sum.shape:
            raise CheckpointError(
                f"{where}: {stem}.embed is {tuple(entries.shape)} there, {tuple(book.embedding_sum.shape)} by its "
                "configuration"
            )
        book.load(entries, usage)
    kept = {name: value for name, value in codec.state_dict().items() if ".semantic." in name or "quantizer" in name}
    load_module(codec, {**kept, **own}, where)
    load_weights(branches.semantic, semantic, f"{where}: {prefix}*")  # type: ignore[arg-type]
    source.finish()


def _decoder(own: dict[str, Tensor], source: Published, codec: XCodec, config: XCodecConfig) -> None:
    """All but the first linear map, which stands elsewhere there."""
    inner: dict[str, Tensor] = {}
    rest = Chain(*list(codec.decoder)[1:])
    take_parts(inner, source, rest, "decoder", named("decoder", "acoustic_decoder", config), "transformers")
    for name, tensor in inner.items():
        _, _, place, leaf = name.split(".", 3)
        own[f"decoder.parts.{int(place) + 1}.{leaf}"] = tensor


def _convolutions(own: dict[str, Tensor], source: Published, chain: Chain, ours: str, stems: Iterator[str]) -> None:
    """Convolutions and residual units of a semantic chain, behind a linear map where there is one."""
    for place, part in enumerate(chain):
        if isinstance(part, Residual):
            stem = next(stems)
            for inside, name in ((1, "conv1"), (3, "conv2")):
                own[f"{ours}.parts.{place}.inner.parts.{inside}.weight"] = source.take(f"{stem}.{name}.weight")
        elif hasattr(part, "kernel"):
            stem = next(stems)
            own[f"{ours}.parts.{place}.weight"] = source.take(f"{stem}.weight")
            if part.bias is not None:
                own[f"{ours}.parts.{place}.bias"] = source.take(f"{stem}.bias")


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
