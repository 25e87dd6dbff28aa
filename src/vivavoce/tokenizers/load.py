"""One door to trained tokenizers: our directories, other people's, single files, hub ids."""

from pathlib import Path

import torch

from vivavoce.codecs import Codec, load_codec
from vivavoce.codecs.checkpoint import CONFIG
from vivavoce.codecs.cosyvoice_files import TOKENS as S3_ONNX
from vivavoce.codecs.cosyvoice_files import is_cosyvoice, load_cosyvoice
from vivavoce.codecs.lyra import is_lyra, load_lyra
from vivavoce.codecs.semantic_weights import FILE as S3GEN
from vivavoce.codecs.semantic_weights import load_s3gen
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.pretrained import PICKLE
from vivavoce.tokenizers.foreign import add_language_model, from_kyutai, from_transformers
from vivavoce.tokenizers.own_codecs import BIGCODEC, bigcodec, wavtokenizer, wavtokenizer_config
from vivavoce.tokenizers.snake_codecs import dac_from_descript
from vivavoce.tokenizers.units import CONFIG as UNITS
from vivavoce.tokenizers.units import UnitCodec

PICKLES = [PICKLE, "*.pt", "*.ckpt", "*.yaml"]
HUB_FILES = ["config.json", "model.safetensors", "codec.yaml", "tokenizer-*.safetensors", "*.tflite", S3GEN,
             S3_ONNX]  # fmt: skip


def load_tokenizer(
    name: str | Path,
    codebooks: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> Codec | UnitCodec:
    """A trained codec, or units with their vocoder, ready to encode and decode.

    name: a directory (ours with `codec.yaml` or `units.json`; transformers' with `config.json`, model_type encodec,
    mimi, dac, xcodec or xcodec2; SNAC's, SpeechTokenizer's, WavTokenizer's, FocalCodec's; Google's with Lyra V2's
    TFLite files; CosyVoice 2's `s3gen.safetensors`, or its own with `flow.pt`, `hift.pt`, `speech_tokenizer_v2.onnx`
    and `cosyvoice2.yaml`), Kyutai's Mimi file `tokenizer-….safetensors` or a directory with it, a weights file `….pth`
    of descript-audio-codec, BigCodec's `bigcodec.pt` or a directory with it, or a hub id `owner/name[@revision]`. The
    package encodec's language model of an EnCodec's codes, `encodec_lm_….th`, may lie beside it (with allow_pickle).
    codebooks: how many to use (None: what the reference emits by default). dtype: of everything but the quantizer,
    which stays float32. allow_pickle: read a foreign pickled checkpoint, by weights-only loading.

    Raises `RequestError` where there is nothing of that name, `CheckpointError` where what is there does not fit.
    """
    files = [*HUB_FILES, *PICKLES] if allow_pickle else HUB_FILES
    place = local_place(name, "tokenizer", files)
    codec = _open(place, allow_pickle)
    if allow_pickle and place.is_dir():
        add_language_model(codec, place)
    if codebooks is not None:
        codec.codebooks = codebooks
    return codec.to(device=device, dtype=dtype)


def _open(path: Path, allow_pickle: bool) -> Codec | UnitCodec:
    if path.is_file():
        if path.suffix == ".pth":
            return dac_from_descript(path, allow_pickle)
        if path.suffix == ".pt":
            return bigcodec(path, allow_pickle)
        if path.suffix != ".safetensors":
            raise CheckpointError(
                f"{path}: a tokenizer is a .safetensors file (Kyutai's Mimi), a .pth file (DAC), a .pt file (BigCodec) "
                "or a directory"
            )
        return from_kyutai(path)
    if (path / CONFIG).is_file():
        return load_codec(path)
    if (path / UNITS).is_file():
        return UnitCodec.load(path)
    if is_lyra(path):
        return load_lyra(path)
    if is_cosyvoice(path):
        return load_cosyvoice(path, allow_pickle)
    if (path / S3GEN).is_file():
        return load_s3gen(path / S3GEN)
    if (path / BIGCODEC).is_file():
        return bigcodec(path / BIGCODEC, allow_pickle)
    files = sorted(path.glob("tokenizer-*.safetensors"))
    if files and not (path / "model.safetensors").is_file():
        return from_kyutai(files[0])
    if (path / "config.json").is_file():
        return from_transformers(path, allow_pickle)
    if files:
        return from_kyutai(files[0])
    configuration = wavtokenizer_config(path)
    if configuration is not None:
        return wavtokenizer(path, configuration, allow_pickle)
    raise CheckpointError(
        f"{path} holds no tokenizer: expected {CONFIG} (ours), config.json (transformers), tokenizer-*.safetensors "
        "(Kyutai's Mimi), soundstream_encoder.tflite (Lyra V2) or s3gen.safetensors (CosyVoice 2)"
    )
