"""Encoders by name, as recipes name them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vivavoce.encoders.base import Encoder
from vivavoce.errors import RecipeError
from vivavoce.schema.parts import build_part, tuples


def _alone(sizes: Iterable[str]) -> None:
    """Raise `RecipeError` for sizes that are said beside a checkpoint's."""
    said = ", ".join(sizes)
    if said:
        raise RecipeError(f"encoder: {said} beside `source`: sizes come from the checkpoint")


def _speech_transformer(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    """Published weights from `source` (directory or hub id), or random ones of the given sizes."""
    from vivavoce.encoders.pretrained import load_speech_transformer
    from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig

    if source is not None:
        _alone(sizes)
        return load_speech_transformer(source, revision, allow_pickle)
    return SpeechTransformer(SpeechTransformerConfig(**tuples(sizes))).eval()


def _wavlm(**options: Any) -> Encoder:
    if "source" not in options:
        options.setdefault("relative_buckets", 320)
    return _speech_transformer(**options)


def _lighthubert(
    source: str | None = None, subnet: Mapping[str, Any] | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    """source: a checkpoint's file of the authors'. subnet: only this part of it is built."""
    from vivavoce.encoders.subnets import build_lighthubert
    from vivavoce.encoders.subnets_weights import load_supernet

    if source is not None:
        _alone(sizes)
        return load_supernet(source, subnet, allow_pickle)
    return build_lighthubert(subnet, **tuples(sizes))


def _speech_conformer(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    """As `_speech_transformer`; `body` has the conformer's own sizes."""
    from vivavoce.encoders.conformer import SpeechConformer, SpeechConformerConfig
    from vivavoce.encoders.conformer_weights import load_speech_conformer

    if source is not None:
        _alone(sizes)
        return load_speech_conformer(source, revision, allow_pickle)
    return SpeechConformer(SpeechConformerConfig(**tuples(sizes))).eval()


def _w2v_bert(**options: Any) -> Encoder:
    """w2v-BERT 2.0: its form is the default of `body`."""
    if "source" not in options:
        form = {"positions": "relative_key", "conv_norm": "layer", "conv_causal": True}
        options["body"] = {"layers": 24, "width": 1024, "heads": 16, **form, **options.get("body", {})}
    return _speech_conformer(**options)


def _wav2vec2_conformer(**options: Any) -> Encoder:
    """The large one of fairseq S2T: its form is the default."""
    if "source" not in options:
        options["body"] = {"layers": 24, "width": 1024, "heads": 16, **options.get("body", {})}
        options = {"front": "waveform", "front_norm": "layer", "conv_bias": True, "last_norm": True, **options}
    return _speech_conformer(**options)


def _data2vec(**options: Any) -> Encoder:
    if "source" not in options:
        options = {"front_norm": "layer", "position_layers": 5, "position_kernel": 19, **options}
    return _speech_transformer(**options)


def _whisper(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    from vivavoce.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
    from vivavoce.encoders.whisper_weights import load_whisper_encoder

    if source is not None:
        _alone(sizes)
        return load_whisper_encoder(source, revision, allow_pickle)
    return WhisperEncoder(WhisperEncoderConfig(**sizes)).eval()


def _s3(**options: Any) -> Encoder:
    from vivavoce.encoders.s3 import S3Config, S3Encoder

    return S3Encoder(S3Config(**tuples(options))).eval()


def _sense_voice(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **options: Any
) -> Encoder:
    """Published weights from `source`, or random ones of the given sizes; `queries` go with both."""
    from vivavoce.encoders.sense_voice import SenseVoice, SenseVoiceConfig
    from vivavoce.encoders.sense_voice_weights import load_sense_voice

    if source is None:
        return SenseVoice(SenseVoiceConfig(**tuples(options))).eval()
    _alone(name for name in options if name != "queries")
    return load_sense_voice(source, revision, allow_pickle, **tuples(options))


def _block_whisper(**options: Any) -> Encoder:
    from vivavoce.audio.whisper import RATE
    from vivavoce.encoders.block_whisper import BlockWhisper
    from vivavoce.encoders.streaming import StreamingEncoder

    return StreamingEncoder(BlockWhisper(**options), RATE)


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


def _mel_transformer(source: str | None = None, allow_pickle: bool = False, **options: Any) -> Encoder:
    """source: S3PRL's file of TERA."""
    from vivavoce.encoders.mel_trunk import MelTransformer
    from vivavoce.encoders.s3prl_weights import load_tera

    if source is not None:
        _alone(options)
        return load_tera(source, allow_pickle)
    return MelTransformer(**options).eval()


def _flow_transformer(**options: Any) -> Encoder:
    from vivavoce.encoders.flow_transformer import FlowTransformer

    return FlowTransformer(**options).eval()


def _mel_convolutions(**options: Any) -> Encoder:
    from vivavoce.encoders.mel_trunk import MelConvolutions

    return MelConvolutions(**options).eval()


def _mel_patches(group: Sequence[int] | None = None, **options: Any) -> Encoder:
    """AudioMAE; group: bands and columns of the patches that lie side by side in one."""
    from vivavoce.encoders.mel_patches import MelPatches, PatchGroups

    patches = MelPatches(**options).eval()
    return patches if group is None else PatchGroups(patches, *group).eval()


def _mel_cnn(**options: Any) -> Encoder:
    from vivavoce.encoders.mel_cnn import MelCNN

    return MelCNN(**options).eval()


def _ecapa(**options: Any) -> Encoder:
    from vivavoce.encoders.ecapa import Ecapa

    return Ecapa(**options).eval()


def _beats(
    source: str | None = None, revision: str | None = None, allow_pickle: bool = False, **sizes: Any
) -> Encoder:
    from vivavoce.encoders.beats import Beats, BeatsConfig
    from vivavoce.encoders.beats_weights import load_beats

    if source is not None:
        _alone(sizes)
        return load_beats(source, revision, allow_pickle)
    return Beats(BeatsConfig(**sizes)).eval()


def _mel_conformer(**options: Any) -> Encoder:
    """BEST-RQ's: its form, over four stacked frames, is the default of `body`."""
    if "source" not in options:
        body = {"layers": 12, "width": 576, "heads": 8, **options.get("body", {})}
        options = {"stack": 4, **options, "body": body}
    return _speech_conformer(**options)


def _decoar2(source: str | None = None, allow_pickle: bool = False, **options: Any) -> Encoder:
    """DeCoAR 2.0: its form is the default of a mel transformer's. source: the published file."""
    from vivavoce.encoders.mel_trunk import MelTransformer
    from vivavoce.encoders.s3prl_weights import load_decoar2

    if source is not None:
        _alone(options)
        return load_decoar2(source, allow_pickle)
    form = {"layers": 12, "stack": 1, "every": 2, "normalize": "sample", "fbank": {"taper": "hamming", "scale": 1.0}}
    return MelTransformer(**{**form, **options}).eval()


def _mel_recurrent(source: str | None = None, allow_pickle: bool = False, **options: Any) -> Encoder:
    """source: S3PRL's file of APC or VQ-APC."""
    from vivavoce.encoders.mel_trunk import MelRecurrent
    from vivavoce.encoders.s3prl_weights import load_apc

    if source is not None:
        _alone(options)
        return load_apc(source, allow_pickle)
    return MelRecurrent(**options).eval()


def _mr_hubert(source: str | None = None, allow_pickle: bool = False, **sizes: Any) -> Encoder:
    """source: S3PRL's copy of a published checkpoint."""
    from vivavoce.encoders.multi_resolution import MultiResolution, MultiResolutionConfig
    from vivavoce.encoders.multi_resolution_weights import load_mr_hubert

    if source is not None:
        _alone(sizes)
        return load_mr_hubert(source, allow_pickle)
    return MultiResolution(MultiResolutionConfig(**tuples(sizes))).eval()


def _cpc(source: str | None = None, allow_pickle: bool = False, **sizes: Any) -> Encoder:
    """CPC_audio's form is the default; `source`: a checkpoint's file, or CPC_audio's folder."""
    from vivavoce.encoders.waveform_context import WaveformContext, WaveformContextConfig
    from vivavoce.encoders.waveform_context_weights import load_cpc

    if source is not None:
        _alone(sizes)
        return load_cpc(source, allow_pickle)
    return WaveformContext(WaveformContextConfig(**tuples(sizes))).eval()


def _wav2vec(source: str | None = None, allow_pickle: bool = False, **sizes: Any) -> Encoder:
    """The first wav2vec; fairseq's wav2vec_large is the default. `source`: a checkpoint's file."""
    from vivavoce.encoders.waveform_context import WaveformContext, WaveformContextConfig
    from vivavoce.encoders.waveform_context_weights import load_wav2vec

    if source is not None:
        _alone(sizes)
        return load_wav2vec(source, allow_pickle)
    form: dict[str, Any] = {
        "conv_widths": (512,) * 7, "conv_kernels": (10, 8, 4, 4, 4, 1, 1), "conv_strides": (5, 4, 2, 2, 2, 1, 1),
        "conv_bias": False, "norm": "signal", "logarithm": True, "body": "convolution", "kernels": tuple(range(2, 14)),
        **tuples(sizes),
    }  # fmt: skip
    form.setdefault("conv_padding", (0,) * len(form["conv_widths"]))
    return WaveformContext(WaveformContextConfig(**form)).eval()


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "hubert": _speech_transformer,
    "wav2vec2": _speech_transformer,
    "wavlm": _wavlm,
    "unispeech": _speech_transformer,
    "unispeech_sat": _speech_transformer,
    "data2vec": _data2vec,
    "lighthubert": _lighthubert,
    "w2v_bert": _w2v_bert,
    "wav2vec2_conformer": _wav2vec2_conformer,
    "whisper": _whisper,
    "s3": _s3,
    "sense_voice": _sense_voice,
    "block_whisper": _block_whisper,
    "mfcc": _mfcc,
    "causal_mel": _causal_mel,
    "log_mel": _log_mel,
    "mel_transformer": _mel_transformer,
    "mel_convolutions": _mel_convolutions,
    "flow_transformer": _flow_transformer,
    "mel_patches": _mel_patches,
    "mel_cnn": _mel_cnn,
    "ecapa": _ecapa,
    "beats": _beats,
    "mel_conformer": _mel_conformer,
    "mel_recurrent": _mel_recurrent,
    "decoar2": _decoar2,
    "cpc": _cpc,
    "wav2vec": _wav2vec,
    "mr_hubert": _mr_hubert,
}


def build_encoder(config: Mapping[str, Any]) -> Encoder:
    """Build from `{"kind": "hubert", "source": "facebook/hubert-base-ls960"}`, or sizes for random weights.

    Raises `RecipeError` naming what is unknown or missing.
    """
    return build_part("encoder", ENCODERS, config)
