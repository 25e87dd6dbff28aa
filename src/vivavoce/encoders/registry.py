"""Encoders by name, as recipes name them."""

from collections.abc import Callable, Mapping
from typing import Any

from vivavoce.encoders.base import Encoder
from vivavoce.errors import RecipeError
from vivavoce.schema.parts import build_part, tuples


def _speech_transformer(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    """Published weights from `source` (directory or hub id), or random ones of the given sizes."""
    from vivavoce.encoders.pretrained import load_speech_transformer
    from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig

    if source is not None:
        if sizes:
            raise RecipeError(f"encoder: {', '.join(sizes)} beside `source`: sizes come from the checkpoint")
        return load_speech_transformer(source, revision, allow_pickle)
    return SpeechTransformer(SpeechTransformerConfig(**tuples(sizes))).eval()


def _wavlm(**options: Any) -> Encoder:
    if "source" not in options:
        options.setdefault("relative_buckets", 320)
    return _speech_transformer(**options)


def _mfcc(**options: Any) -> Encoder:
    from vivavoce.encoders.mfcc import MFCCEncoder

    return MFCCEncoder(**options)


def _causal_mel(**options: Any) -> Encoder:
    from vivavoce.encoders.causal_mel import CausalMelEncoder
    from vivavoce.encoders.streaming import StreamingEncoder

    module = CausalMelEncoder(**tuples(options))
    return StreamingEncoder(module, module.sample_rate)


def _log_mel(**options: Any) -> Encoder:
    from vivavoce.encoders.streaming import StreamingEncoder
    from vivavoce.nn.logmel import StreamingLogMel

    module = StreamingLogMel(**options)
    return StreamingEncoder(module, module.sample_rate)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "hubert": _speech_transformer,
    "wav2vec2": _speech_transformer,
    "wavlm": _wavlm,
    "mfcc": _mfcc,
    "causal_mel": _causal_mel,
    "log_mel": _log_mel,
}


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """Build from `{"kind": "hubert", "source": "facebook/hubert-base-ls960"}`, or sizes for random weights.

    Raises `RecipeError` naming what is unknown or missing.
    """
    return build_part("encoder", ENCODERS, config)
