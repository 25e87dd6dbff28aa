"""Our encoders as transformers keeps them: configuration, what its feature extractor does, tensors."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vivavoce.encoders import conformer_weights, pretrained, whisper_weights
from vivavoce.encoders.base import Encoder
from vivavoce.encoders.conformer import SpeechConformer
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.encoders.whisper import STRIDE, WhisperEncoder
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.likeness import unlike

# Kinds of recipes -> model_type; of another kind, an encoder is what its parts make it.
FAMILIES = {
    "hubert": "hubert", "wav2vec2": "wav2vec2", "wavlm": "wavlm", "data2vec": "data2vec-audio",
    "unispeech": "unispeech", "unispeech_sat": "unispeech-sat",
}  # fmt: skip
KNOWN = "HuBERT, wav2vec 2.0 (and its conformer), WavLM, data2vec, UniSpeech, w2v-BERT 2.0 and Whisper's encoder"


class Published(NamedTuple):
    """A model in transformers' format: its `config.json`, `preprocessor_config.json` and tensors."""

    config: dict[str, Any]
    extractor: dict[str, Any]
    tensors: dict[str, Tensor]


def transformers_encoder(encoder: Encoder, kind: str | None = None) -> Published:
    """An encoder in transformers' format; kind: as recipes name it, which decides between families of one form.

    It is read again before it is given: `RequestError` where transformers has no such architecture.
    """
    if isinstance(encoder, SpeechTransformer):
        found, again = _transformer(encoder, FAMILIES.get(kind or "", _family(encoder)))
    elif isinstance(encoder, SpeechConformer):
        found, again = _conformer(encoder)
    elif isinstance(encoder, WhisperEncoder):
        found, again = _whisper(encoder)
        encoder = copy.deepcopy(encoder)
        with torch.no_grad():
            for block in encoder.blocks:
                block.key.bias.zero_()  # type: ignore[union-attr, operator]
    else:
        raise RequestError(f"transformers has no architecture for a {type(encoder).__name__}; it has {KNOWN}")
    differences = unlike(encoder, again)
    if differences:
        kind = found.config["model_type"]
        raise RequestError(f"transformers' {kind} is another encoder: {'; '.join(differences[:3])}")
    return found


def _family(encoder: SpeechTransformer) -> str:
    config = encoder.config
    return "data2vec-audio" if config.position_layers else "wavlm" if config.relative_buckets else "hubert"


def _transformer(encoder: SpeechTransformer, family: str) -> tuple[Published, Encoder]:
    config = pretrained.transformers_config(encoder.config, family)
    extractor = _waves(encoder.config.normalize, encoder.config.front_norm)
    tensors = pretrained.transformers_weights(encoder, family)
    with refused(family):
        again = SpeechTransformer(pretrained.read_config(config, encoder.config.normalize))
        pretrained.load_weights(again, tensors)
    return Published(config, extractor, tensors), again


def _conformer(encoder: SpeechConformer) -> tuple[Published, Encoder]:
    own = encoder.config
    family = "wav2vec2-bert" if own.front == "mel" else "wav2vec2-conformer"
    config = conformer_weights.transformers_config(own, family)
    extractor = _waves(own.normalize, own.front_norm)
    if own.front == "mel":
        extractor = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": own.mels}
        extractor |= {"num_mel_bins": own.mels, "stride": own.stack, "sampling_rate": own.sample_rate}
    tensors = conformer_weights.transformers_weights(encoder, family)
    with refused(family):
        again = SpeechConformer(conformer_weights.read_config(config, extractor))
        conformer_weights.load_weights(again, tensors)
    return Published(config, extractor, tensors), again


def _whisper(encoder: WhisperEncoder) -> tuple[Published, Encoder]:
    config, tensors = whisper_weights.transformers_config(encoder.config), whisper_weights.transformers_weights(encoder)
    seconds = encoder.config.positions * STRIDE / encoder.sample_rate
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": encoder.config.mels}
    extractor |= {"sampling_rate": encoder.sample_rate, "chunk_length": int(seconds) if seconds % 1 == 0 else seconds}
    with refused("whisper"):
        again = WhisperEncoder(whisper_weights.read_config(config))
        whisper_weights.load_weights(again, tensors)
    return Published(config, extractor, tensors), again


def _waves(normalize: bool, front_norm: str) -> dict[str, Any]:
    """Of waveforms at 16 kHz; transformers hears the padding of a batch where a norm is over time."""
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "padding_value": 0.0}
    return extractor | {
        "sampling_rate": 16000, "do_normalize": normalize, "return_attention_mask": front_norm == "layer"
    }  # fmt: skip


@contextmanager
def refused(kind: str) -> Iterator[None]:
    """What our own reader of transformers' `kind` says against what is to be written is a `RequestError`."""
    try:
        yield
    except (CheckpointError, RecipeError) as error:
        raise RequestError(f"transformers' {kind} cannot hold this model: {error}") from error
