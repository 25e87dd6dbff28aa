"""SenseVoice-Small as FunASR keeps it, `config.yaml`, `am.mvn` and `model.pt`, into our encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill
from vivavoce.encoders.sense_voice import SenseVoice, SenseVoiceConfig
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.nn.weights import check_asked, read_pickle
from vivavoce.schema.parts import made

CONFIG, STATISTICS, WEIGHTS = "config.yaml", "am.mvn", "model.pt"
# Ours <- theirs, of the front end and of the encoder.
_FRONT = {"mels": "n_mels", "stack": "lfr_m", "every": "lfr_n"}
_SIZES = {
    "width": "output_size",
    "layers": "num_blocks",
    "more": "tp_blocks",
    "heads": "attention_heads",
    "hidden": "linear_units",
    "memory": "kernel_size",
}
_FIXED = {"normalize_before": True, "sanm_shfit": 0, "input_layer": "pe", "selfattention_layer_type": "sanm"}
_PARTS = {
    "norm1": "attention_norm",
    "norm2": "feedforward_norm",
    "self_attn.linear_q_k_v": "qkv",
    "self_attn.linear_out": "output",
    "self_attn.fsmn_block": "memory",
    "feed_forward.w_1": "widen",
    "feed_forward.w_2": "narrow",
}


def load_sense_voice(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False, **options: Any
) -> SenseVoice:
    """The encoder of a directory of FunASR's (or of a hub id `owner/name[@revision]`), in evaluation mode.

    allow_pickle: its weights are a pickle, which is read, by weights-only loading, only where this says so. options:
    `queries` of `SenseVoiceConfig`. Raises `RequestError` where there is nothing of that name, `CheckpointError` where
    what is there does not fit.
    """
    folder = local_place(source, "encoder", [CONFIG, STATISTICS, WEIGHTS], revision)
    config = read_config(folder / CONFIG, **options)
    check_asked(folder / WEIGHTS, allow_pickle)
    model = SenseVoice(config)
    shift, scale = read_statistics(folder / STATISTICS, config.mels * config.stack)
    load_weights(model, {**read_pickle(folder / WEIGHTS), "shift": shift, "scale": scale}, str(folder))
    return model.eval()


def read_config(path: Path, **options: Any) -> SenseVoiceConfig:
    """Our sizes of a `config.yaml`; `CheckpointError` for what the encoder does not have."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}".split("\n")[0]) from error
    said = found if isinstance(found, dict) else {}
    if said.get("encoder") != "SenseVoiceEncoderSmall":
        raise CheckpointError(f"{path}: encoder {said.get('encoder')!r} is not SenseVoiceEncoderSmall")
    encoder, front = (dict(said.get(name) or {}) for name in ("encoder_conf", "frontend_conf"))
    where = str(path)
    check_settings(encoder, where, **_FIXED)
    check_settings(front, where, fs=16000, window="hamming", frame_length=25, frame_shift=10, snip_edges=True)
    check_sizes(encoder, where, _SIZES.values())
    check_sizes(front, where, _FRONT.values())
    sizes = {name: encoder[key] for name, key in _SIZES.items()} | {name: front[key] for name, key in _FRONT.items()}
    return made("encoder", SenseVoiceConfig, **sizes, **options)


def read_statistics(path: Path, width: int) -> tuple[Tensor, Tensor]:
    """What is added to stacks of frames and what they are multiplied by then, [width] each, of a Kaldi network file
    (`AddShift`, `Rescale`); `CheckpointError` where they are not there."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = []
    for name in ("<AddShift>", "<Rescale>"):
        try:
            start = words.index("[", words.index(name)) + 1
            values = [float(word) for word in words[start : words.index("]", start)]]
        except ValueError:
            raise CheckpointError(f"{path}: no values behind {name}") from None
        if len(values) != width:
            raise CheckpointError(f"{path}: {len(values)} values behind {name}, the config says {width}")
        found.append(torch.tensor(values))
    return found[0], found[1]


def load_weights(model: SenseVoice, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a SenseVoiceSmall's state dict, with `shift` and `scale`; the head for text is left out, all else must
    fit."""
    first, many = "encoder.encoders0.0", "encoder.encoders"
    names = Names(
        {
            "embed": "table",
            "encoder.after_norm": "middle_norm",
            "encoder.tp_norm": "norm",
            **{f"{first}.{theirs}": f"first.{ours}" for theirs, ours in _PARTS.items()},
            **{f"{many}.*.{theirs}": f"blocks.*.{ours}" for theirs, ours in _PARTS.items()},
        }
    )
    before, ours = model.config.layers - 1, {}
    for name, value in state.items():
        if name.startswith("ctc."):
            continue
        if name.startswith("encoder.tp_encoders."):
            number, rest = name.removeprefix("encoder.tp_encoders.").split(".", 1)
            name = f"{many}.{before + int(number)}.{rest}"
        ours[names.ours(name) or name] = value
    fill(model, ours, source)
