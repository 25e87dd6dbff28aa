"""Codecs in the files of their authors' own repositories: from their configuration, or the shapes there, to ours.

- SpeechTokenizer: `config.json` (n_filters, strides, n_q, …) beside a pickled state dict (`*.pt`)
- BigCodec: one pickled file (`bigcodec.pt`) of two state dicts, `CodecEnc` and `generator`
- WavTokenizer: the training's YAML beside a checkpoint (`*.ckpt`) whose `state_dict` has `feature_extractor`,
  `backbone` and `head`; of the feature extractor, the encoder and the codebook are heard

Pickles are read by weights-only loading, and only with `allow_pickle`; safetensors of the same names are read as well.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from vivavoce.codecs import PUBLISHED, Codec, CodecConfig, build_codec
from vivavoce.codecs.bigcodec import BigCodecConfig, build_bigcodec
from vivavoce.codecs.codebook_weights import read_codebook
from vivavoce.codecs.seanet_vocos import SEANetVocosConfig, build_seanet_vocos
from vivavoce.codecs.seanet_weights import chain_pairs, fill
from vivavoce.codecs.snake_weights import fill_bigcodec
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.pairs import Published
from vivavoce.nn.weights import check_asked, load_part, read_pickled_tree, read_safetensors
from vivavoce.pretrained import CONFIG, has_safetensors, read_weights
from vivavoce.vocoders.vocos import vocos_pairs

BIGCODEC = "bigcodec.pt"
# Ours <- theirs.
SPEECHTOKENIZER = {
    "sample_rate": "sample_rate",
    "filters": "n_filters",
    "ratios": "strides",
    "dim": "dimension",
    "lstm": "lstm_layers",
    "both_ways": "bidirectional",
    "dilation_base": "dilation_base",
    "residual_kernel": "residual_kernel_size",
    "residual_layers": "n_residual_layers",
    "codebooks": "n_q",
    "codebook_size": "codebook_size",
}


def is_speechtokenizer(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is SpeechTokenizer's: it names no model_type, but what no other codec has."""
    return "n_q" in config and "semantic_dimension" in config


def speechtokenizer(folder: Path, config: Mapping[str, Any], allow_pickle: bool = False) -> Codec:
    """SpeechTokenizer from its directory; the projection of its distillation is left out."""
    where = str(folder / CONFIG)
    missing = [theirs for theirs in SPEECHTOKENIZER.values() if theirs not in config]
    if missing:
        raise CheckpointError(f"{where}: {', '.join(missing)} missing")
    if config.get("activation", "ELU") != "ELU":
        raise CheckpointError(f"{where}: activation is {config['activation']!r}, not ELU")
    sizes = {ours: config[theirs] for ours, theirs in SPEECHTOKENIZER.items()}
    codec = _built(lambda: build_codec(CodecConfig.of({**PUBLISHED["speechtokenizer"], **sizes})), where)
    tensors = _state(folder, allow_pickle)
    heard = {name: tensor for name, tensor in tensors.items() if not name.startswith("transform.")}
    fill(codec, heard, "original", str(folder))
    return codec.eval()


def bigcodec(path: Path, allow_pickle: bool = False) -> Codec:
    """BigCodec from its file; its sizes are those of the tensors."""
    check_asked(path, allow_pickle)
    found = read_pickled_tree(path)
    try:
        tensors = {f"encoder.{name}": tensor for name, tensor in found["CodecEnc"].items()}
        tensors |= {f"decoder.{name}": tensor for name, tensor in found["generator"].items()}
        sizes = _bigcodec_sizes(tensors)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: no BigCodec: {error} is missing") from None
    codec = _built(lambda: build_bigcodec(BigCodecConfig.of(sizes)), str(path))
    fill_bigcodec(codec, tensors, str(path))
    return codec.eval()


def _bigcodec_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    source = Published(tensors, "it")
    blocks = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block.")})
    down = [n for n in blocks if f"encoder.block.{n}.block.4.bias" in tensors]
    up = {int(name.split(".")[2]) for name in tensors if name.startswith("decoder.model.") and ".block.1." in name}
    books = sorted({int(name.split(".")[3]) for name in tensors if name.startswith("decoder.quantizer.layers.")})
    entries = tensors["decoder.quantizer.layers.0._codebook.weight"]
    lstm = {name for name in tensors if name.startswith("encoder.") and ".lstm.weight_ih_l" in name}
    return {
        "encoder_dim": len(tensors["encoder.block.0.bias"]),
        "encoder_rates": [source.take(f"encoder.block.{n}.block.4.weight").shape[2] // 2 for n in down],
        "decoder_dim": len(tensors["decoder.model.0.bias"]),
        "decoder_rates": [source.take(f"decoder.model.{n}.block.1.weight").shape[2] // 2 for n in sorted(up)],
        "latent_dim": len(tensors[f"encoder.block.{blocks[-1]}.bias"]),
        "codebooks": len(books),
        "codebook_size": len(entries),
        "quantizer": {"codebook_width": entries.shape[1]},
        "lstm": len(lstm),
    }


def wavtokenizer_config(folder: Path) -> Path | None:
    """The YAML of a directory that is WavTokenizer's; None where there is none."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if isinstance(found, dict) and {"feature_extractor", "backbone", "head"} <= found.keys():
            return path
    return None


def wavtokenizer(folder: Path, path: Path, allow_pickle: bool = False) -> Codec:
    """WavTokenizer from a directory with its training's YAML (`path`) and a checkpoint."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]
        front, body, head = (said[part]["init_args"] for part in ("feature_extractor", "backbone", "head"))
        vocoder = {
            "width": body["dim"],
            "hidden": body["intermediate_dim"],
            "layers": body["num_layers"],
            "fft_size": head["n_fft"],
            "hop": head["hop_length"],
            "padding": head.get("padding", "same"),
            "conditions": body.get("adanorm_num_embeddings") or 0,
            "prenet": True,
        }
        sizes = {
            "sample_rate": said.get("sample_rate", 24000),
            "ratios": front["dowmsamples"],
            "dim": body["input_channels"],
            "codebooks": front["num_quantizers"],
            "codebook_size": front["vq_bins"],
        }
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error} is missing: not WavTokenizer's") from None
    if vocoder["hop"] != math.prod(sizes["ratios"]):
        raise CheckpointError(f"{path}: hop_length {vocoder['hop']} does not undo dowmsamples {sizes['ratios']}")
    tensors = _state(folder, allow_pickle)
    sizes["filters"] = _filters(tensors, str(folder))
    codec = _built(lambda: build_seanet_vocos(SEANetVocosConfig.of({**sizes, "vocoder": vocoder})), str(path))
    stem = "feature_extractor.encodec."
    kept = ("backbone.", "head.", f"{stem}encoder.", f"{stem}quantizer.")
    source = Published({name: value for name, value in tensors.items() if name.startswith(kept)}, str(folder))
    own = source.all([*chain_pairs(codec.encoder, "encoder", "original", f"{stem}encoder"),
                      *vocos_pairs(codec.vocos, "decoder.")])  # fmt: skip
    load_part(codec, own, str(folder))
    for number, book in enumerate(codec.quantizer.books()):  # type: ignore[operator]
        read_codebook(book, source, f"{stem}quantizer.vq.layers.{number}._codebook")
    source.finish()
    return codec.eval()


def _filters(tensors: Mapping[str, Tensor], where: str) -> int:
    """Width at the waveform, which the configuration leaves out."""
    name = "feature_extractor.encodec.encoder.model.0.conv.conv.bias"
    if name not in tensors:
        raise CheckpointError(f"{where}: '{name}' is missing: not WavTokenizer's")
    return len(tensors[name])


def _built(build: Callable[[], Any], where: str) -> Any:
    try:
        return build()
    except RecipeError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _state(folder: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a directory: of safetensors, or of its one pickled checkpoint, also under `state_dict`."""
    if has_safetensors(folder):
        return read_weights(folder)
    others = sorted(folder.glob("*.safetensors"))
    if others:
        return read_safetensors(others[0])
    files = sorted(file for kind in ("*.pt", "*.ckpt", "*.bin") for file in folder.glob(kind))
    if not files:
        raise CheckpointError(f"{folder} holds no weights: none of *.safetensors, *.pt, *.ckpt, *.bin is there")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} holds several checkpoints ({names}): leave the one that counts")
    check_asked(files[0], allow_pickle)
    found = read_pickled_tree(files[0])
    inner = found.get("state_dict", found) if isinstance(found, dict) else {}
    return {name: tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
