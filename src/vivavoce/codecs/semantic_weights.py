"""Published supervised semantic tokens into ours: S3 as the package s3tokenizer names it, with CosyVoice 2's decoder as
the file s3gen.safetensors of ResembleAI/chatterbox holds it (tokenizer, flow, mel2wav).

The files' speaker encoder (CAM++) has no place here: the codec's own stays untrained, and `decode` is given vectors.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vivavoce.codecs.feature_codec import SpeechFeatures
from vivavoce.codecs.semantic import SemanticCodec, SemanticConfig
from vivavoce.encoders.s3 import S3Encoder
from vivavoce.errors import CheckpointError
from vivavoce.nn.pairs import Pair, Published, weight_and_bias
from vivavoce.nn.weights import load_module, read_safetensors
from vivavoce.quantizers import VectorQuantizer
from vivavoce.vocoders.cosyvoice_weights import fill_flow, fill_hift

FILE = "s3gen.safetensors"
COMPUTED = ("_mel_filters", "window", "freqs_cis")


def load_s3gen(path: str | Path) -> SemanticCodec:
    """CosyVoice 2's tokens and decoder from an s3gen.safetensors, at the published sizes, in evaluation mode. Raises
    `CheckpointError`."""
    tensors, where = read_safetensors(Path(path)), str(path)
    codec = SemanticCodec(SemanticConfig())
    fill_s3(codec, part_of(tensors, "tokenizer."), f"{where}: tokenizer")
    fill_flow(codec.to_mel, part_of(tensors, "flow."), f"{where}: flow")
    fill_hift(codec.vocoder, part_of(tensors, "mel2wav."), f"{where}: mel2wav")
    return codec.eval()


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part, without its name."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if not name.endswith(COMPUTED)}


def fill_s3(codec: SemanticCodec, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the encoder and quantizer of a published S3 tokenizer, of the first or second version, into a codec of its
    shape. What leads out of the second's grid is not published, and stays. Raises `CheckpointError`."""
    encoder, quantizer, source = _encoder(codec, where), codec.quantizer, Published(tensors, where)
    load_module(encoder, source.all(_pairs(encoder)), where)
    if isinstance(quantizer, VectorQuantizer):
        book, entries = quantizer.books()[0], source.take("quantizer._codebook.embed")
        if entries.shape != book.embedding_sum.shape:
            raise CheckpointError(f"{where}: entries {tuple(entries.shape)}, not {tuple(book.embedding_sum.shape)}")
        book.load(entries, None)
    else:
        down = source.all(weight_and_bias("input_projection", "quantizer._codebook.project_down"))
        load_module(quantizer, {**quantizer.state_dict(), **down}, where)
    source.finish()


def _encoder(codec: SemanticCodec, where: str) -> S3Encoder:
    for part in codec.encoder:
        if isinstance(part, SpeechFeatures) and isinstance(part.encoder, S3Encoder):
            return part.encoder
    raise CheckpointError(f"{where}: these are tokens of an S3 encoder, the codec has another one")


def _pairs(encoder: S3Encoder) -> Iterator[Pair]:
    yield from weight_and_bias("first", "encoder.conv1")
    yield from weight_and_bias("second", "encoder.conv2")
    if encoder.places is not None:
        yield Pair("places", ["encoder.positional_embedding"])
    for number, block in enumerate(encoder.blocks):
        mine, there = f"blocks.{number}", f"encoder.blocks.{number}"
        for name in ("query", "key", "value", "out"):
            yield from weight_and_bias(f"{mine}.{name}", f"{there}.attn.{name}", name != "key")
        if block.memory is not None:
            yield Pair(f"{mine}.memory.weight", [f"{there}.attn.fsmn_block.weight"])
        for own, name in (("attention_norm", "attn_ln"), ("feedforward_norm", "mlp_ln"), ("widen", "mlp.0"),
                          ("narrow", "mlp.2")):  # fmt: skip
            yield from weight_and_bias(f"{mine}.{own}", f"{there}.{name}")
