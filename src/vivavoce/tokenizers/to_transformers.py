"""Codecs of ours as transformers keeps them: EnCodec, Mimi, DAC, X-Codec, X-Codec 2, and units of its encoders.

Names and sizes are those of the readers (`foreign`, `snake_codecs`, `semantic_codecs` and the modules that they fill
weights by), turned round. What is written is read again first: it is the same codec, or refused.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.codecs import Codec, CodecConfig, build_codec
from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.codecs.dac import DACConfig
from vivavoce.codecs.options import plain
from vivavoce.codecs.registry import KINDS
from vivavoce.codecs.seanet_weights import transformers_tensors
from vivavoce.codecs.snake_weights import transformers_snake
from vivavoce.codecs.xcodec import XCodecConfig
from vivavoce.codecs.xcodec2 import XCodec2Config
from vivavoce.codecs.xcodec2_weights import transformers_xcodec2
from vivavoce.codecs.xcodec_weights import semantic_encoder, transformers_xcodec
from vivavoce.encoders import conformer_weights, pretrained
from vivavoce.encoders.conformer import SpeechConformer
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.encoders.to_transformers import KNOWN, Published, refused, transformers_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RequestError
from vivavoce.nn.likeness import unlike
from vivavoce.nn.weights import written_whole
from vivavoce.pretrained import save_directory
from vivavoce.quantizers import ResidualVectorQuantizer, SplitResidualVectorQuantizer
from vivavoce.tokenizers.foreign import MIMI_TRANSFORMER, PAD_MODES, SEANET, any_codec
from vivavoce.tokenizers.semantic_codecs import ACOUSTIC, XCODEC, XCODEC2
from vivavoce.tokenizers.snake_codecs import DAC
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.vocoders.checkpoints import transformers_vocoder

CODECS = "EnCodec and Mimi (kind codec), DAC (dac), X-Codec (xcodec) and X-Codec 2 (xcodec2)"
CENTERS, VOCODER = "centers.npy", "vocoder"


def save_transformers(tokenizer: Any, directory: str | Path) -> list[str]:
    """Write a codec, or units with what makes and speaks them, for transformers; what there is to say about it.

    Of units: the encoder, `centers.npy` [units, width], and in `vocoder/` SeamlessM4T's form of what speaks them.
    Raises `RequestError` for what transformers has no architecture for; nothing is written then.
    """
    folder = Path(directory)
    if isinstance(tokenizer, UnitCodec):
        return _save_units(tokenizer, folder)
    found, notes = transformers_codec(tokenizer)
    save_directory(folder, found.config, found.tensors, found.extractor)
    return notes


def transformers_codec(codec: Any) -> tuple[Published, list[str]]:
    """A codec in transformers' format, and what there is to say about it; errors as `save_transformers` has them."""
    write = WRITERS.get(type(getattr(codec, "config", None)))
    if write is None:
        kind = KINDS.get(type(getattr(codec, "config", None)), type(codec).__name__)
        raise RequestError(
            f"transformers has no architecture for a '{kind}'; of codecs it has {CODECS}, of encoders of units {KNOWN}"
        )
    notes: list[str] = []
    if isinstance(codec.config, CodecConfig):
        codec, notes = _in_their_order(codec)
    with refused(KINDS[type(codec.config)]):
        found = write(codec)
        found = found._replace(config=plain(found.config))
        again = any_codec(json.loads(json.dumps(found.config)), found.tensors, "what was written")
    differences = unlike(codec, again, beside=("config",))
    if differences:
        kind = found.config["model_type"]
        raise RequestError(f"transformers' {kind} is another codec than this: {'; '.join(differences[:3])}")
    return found, notes


# -- EnCodec and Mimi --


def _in_their_order(codec: Codec) -> tuple[Codec, list[str]]:
    """The same codec as transformers computes it: each convolution fills its own last stride, and queries and keys turn
    in halves, not in pairs side by side."""
    config: CodecConfig = codec.config
    turned = bool((config.transformer or {}).get("rope_interleaved"))
    if not turned and not config.whole_frames:
        return codec, []
    inner = None if config.transformer is None else {**config.transformer, "rope_interleaved": False}
    other = build_codec(dataclasses.replace(config, whole_frames=False, transformer=inner))
    names = list(other.state_dict())
    tensors = dict(zip(names, codec.state_dict().values(), strict=True))  # the parts of both stand in one order
    for name in names if turned else ():
        if name.endswith("attention.qkv.weight"):
            attention = other.get_submodule(name.removesuffix(".qkv.weight"))
            tensors[name] = _in_halves(tensors[name], attention.heads, attention.kv_heads)  # type: ignore[arg-type]
    other.load_state_dict(tensors)
    other.codebooks = codec.codebooks
    note = "a last frame that is not full is filled by each convolution, not by zeros of the waveform"
    return other.eval(), [note] if config.whole_frames else []


def _in_halves(weight: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Rows of queries, keys and values [(heads + 2 kv_heads) x D, width]: of each head's D of the first two, the even
    ones first."""
    rows = weight.unflatten(0, (heads + 2 * kv_heads, -1)).clone()
    turned = rows[: heads + kv_heads]
    rows[: heads + kv_heads] = torch.cat([turned[:, 0::2], turned[:, 1::2]], dim=1)
    return rows.flatten(0, 1)


def _seanet(codec: Codec) -> Published:
    config: CodecConfig = codec.config
    modes = {ours: theirs for theirs, ours in PAD_MODES.items()}
    said: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SEANET.items()}
    said |= {"use_conv_shortcut": not config.true_skip, "pad_mode": modes[config.pad_mode]}
    said["codebook_size"] = codec.quantizer.codebook_sizes[0]
    extractor = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": config.channels}
    extractor |= {"sampling_rate": config.sample_rate, "padding_value": 0.0, "return_attention_mask": True}
    if isinstance(codec.quantizer, SplitResidualVectorQuantizer):
        return Published({**said, **_mimi(codec, codec.quantizer)}, extractor, transformers_tensors(codec, False))
    if not config.lstm or not isinstance(codec.quantizer, ResidualVectorQuantizer):
        raise RequestError("transformers' EnCodec has LSTMs and a residual quantizer, its Mimi has transformers and a "
                           "split one; this codec is neither")  # fmt: skip
    said |= {"model_type": "encodec", "num_lstm_layers": config.lstm, "norm_type": "weight_norm"}
    said |= {"codebook_dim": codec.quantizer.books()[0].width, "target_bandwidths": _bandwidths(codec, codec.codebooks)}
    if isinstance(codec, ChunkedCodec):
        cut = {"chunk_length_s": codec.chunk / codec.sample_rate, "overlap": round(1 - codec.stride / codec.chunk, 9)}
        said |= {"norm_type": "time_group_norm", "normalize": codec.normalize, **cut}
        extractor |= cut
    return Published(said, extractor, transformers_tensors(codec, said["norm_type"] == "weight_norm"))


def _mimi(codec: Codec, quantizer: SplitResidualVectorQuantizer) -> dict[str, Any]:
    config: CodecConfig = codec.config
    if config.transformer is None:
        raise RequestError("transformers' Mimi has transformers beside its split quantizer; this codec has none")
    form = next(part for part in codec.encoder if hasattr(part, "layers")).config  # type: ignore[union-attr]
    said = {theirs: getattr(form, ours) for ours, theirs in MIMI_TRANSFORMER.items()}
    said["num_key_value_heads"] = form.kv_heads or form.heads
    said["intermediate_size"] = codec.encoder.state_dict()[_widened(codec)].shape[0]
    width = quantizer.semantic.books()[0].width
    return {
        **said,
        "model_type": "mimi",
        "hidden_act": form.activation,
        "head_dim": form.head_dim or form.width // form.heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": form.rope_theta},
        "num_quantizers": quantizer.codebooks,
        "num_semantic_quantizers": quantizer.semantic.codebooks,
        "codebook_dim": width,
        "vector_quantization_hidden_dimension": width,
        "upsample_groups": config.upsample_groups,
    }


def _widened(codec: Codec) -> str:
    return next(name for name in codec.encoder.state_dict() if name.endswith("feedforward.inner.weight"))


def _bandwidths(codec: Codec, used: int) -> list[float]:
    """kbit/s of `used` codebooks, of twice as many and so on, and of all: the first is what transformers encodes at."""
    size, total = codec.quantizer.codebook_sizes[0], codec.quantizer.codebooks
    rate = math.ceil(codec.sample_rate / codec.hop)
    counts = [used * 2**power for power in range(total) if used * 2**power < total]
    last = total * rate * math.ceil(math.log2(size)) / 1000
    while int(1000 * last // (rate * math.ceil(math.log2(size)))) < total:
        last = math.nextafter(last, math.inf)
    return [*(count * rate * math.log2(size) / 1000 for count in counts), last]


# -- the stacks of DAC --


def _dac(codec: Codec) -> Published:
    config: DACConfig = codec.config
    quantizer: Any = codec.quantizer
    said: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in DAC.items()}
    said |= {
        "model_type": "dac",
        "upsampling_ratios": config.decoder_rates,
        "hidden_size": config.latent_dim or config.encoded,
        "hop_length": codec.hop,
        "codebook_dim": quantizer.levels[0].entries.shape[1],
        "quantizer_dropout": quantizer.dropout,
        "commitment_loss_weight": quantizer.commitment,
        "codebook_loss_weight": quantizer.codebook,
    }
    return Published(said, _whole_hops(codec), transformers_snake(codec))


def _xcodec(codec: Any) -> Published:
    config: XCodecConfig = codec.config
    semantic = _hearing(codec, SpeechTransformer)
    family = str(config.semantic["kind"])
    acoustic = {theirs: getattr(config, ours) for ours, theirs in ACOUSTIC.items()}
    said: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in XCODEC.items()}
    said |= {
        "model_type": "xcodec",
        "acoustic_model_config": {**acoustic, "model_type": "dac", "hidden_size": config.acoustic},
        "semantic_model_config": pretrained.transformers_config(semantic.config, family),
        "strides": [1] * config.blocks,
        "channel_ratios": [1] * config.blocks,
        "codebook_dim": codec.quantizer.width,
        "target_bandwidths": _bandwidths(codec, codec.codebooks),
    }
    return Published(said, _whole_hops(codec), transformers_xcodec(codec, family))


def _xcodec2(codec: Any) -> Published:
    config: XCodec2Config = codec.config
    semantic = _hearing(codec, SpeechConformer)
    said: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in XCODEC2.items()}
    said |= {
        "model_type": "xcodec2",
        "semantic_model_config": conformer_weights.transformers_config(semantic.config, "wav2vec2-bert"),
        "hidden_act": "silu",
        "num_key_value_heads": config.heads,
        "head_dim": config.head_dim or config.width // config.heads,
        "quantization_dim": codec.quantizer.width,
    }
    return Published(said, {**_whole_hops(codec), "feature_extractor_type": "Xcodec2FeatureExtractor",
                            "feature_size": semantic.config.mels, "padding_value": 1.0}, transformers_xcodec2(codec))


def _hearing(codec: Any, kind: type) -> Any:
    semantic = semantic_encoder(codec)
    if not isinstance(semantic, kind):
        raise RequestError(f"transformers' codec hears by a {kind.__name__}, not a {type(semantic).__name__}")
    return semantic


def _whole_hops(codec: Codec) -> dict[str, Any]:
    """What is heard is filled by zeros to whole hops."""
    extractor = {"feature_extractor_type": "DacFeatureExtractor", "feature_size": 1, "padding_value": 0.0}
    return extractor | {"sampling_rate": codec.sample_rate, "hop_length": codec.hop}


WRITERS: Mapping[type, Callable[[Any], Published]] = {
    CodecConfig: _seanet,
    DACConfig: _dac,
    XCodecConfig: _xcodec,
    XCodec2Config: _xcodec2,
}


# -- units --


def _save_units(codec: UnitCodec, folder: Path) -> list[str]:
    units, notes = codec.units, []
    found = transformers_encoder(units.encoder, (units.config or {}).get("kind"))
    voice = None
    if codec.vocoder is not None:
        try:
            voice = transformers_vocoder(codec.vocoder)
        except RequestError as error:
            notes.append(f"without the vocoder: {error}")
    save_directory(folder, found.config, found.tensors, found.extractor)
    if voice is not None:
        save_directory(folder / VOCODER, *voice)
    if type(units) is UnitTokenizer and bool((units.scale == 1).all()):
        with written_whole(folder / CENTERS) as part, part.open("wb") as file:
            np.save(file, units.centers.cpu().numpy())
        if units.layer is not None:
            notes.append(f"{CENTERS} is of hidden_states[{units.layer}]")
    else:
        notes.append("without the centers: they are compared with frames in another way than as they are")
    return notes
