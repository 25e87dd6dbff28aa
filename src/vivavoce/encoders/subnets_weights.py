"""Published LightHuBERT supernets (mechanicalsea/lighthubert: one .pt file, {'cfg': ..., 'model': ...}) into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vivavoce.encoders.fairseq import BLOCK, convolutions, read_tree
from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, fill
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.encoders.subnets import Sizes, cut
from vivavoce.errors import CheckpointError

NAMES = Names({
    "layer_norm": "front_norm", "post_extract_proj": "projection", "encoder.layer_norm": "norm",
    "encoder.pos_conv.0": "position", "encoder.pos_conv.*.*": "position.*",
    **{f"encoder.layers.*.{theirs}": f"blocks.*.{ours}" for theirs, ours in BLOCK.items()},
})  # fmt: skip
LEARNING = ("mask_emb", "layer_pred_heads.", "label_embs_concat", "final_proj.")  # what features do not need
# Ours <- theirs, and what LightHuBERTConfig has where a checkpoint does not say it.
_SIZES = {
    "width": ("encoder_embed_dim", 768), "layers": ("encoder_layers", 12), "hidden": ("encoder_ffn_embed_dim", 3072),
    "heads": ("encoder_attention_heads", 12), "position_kernel": ("conv_pos", 128),
    "position_groups": ("conv_pos_groups", 16), "stable": ("layer_norm_first", False),
    "conv_bias": ("conv_bias", False),
}  # fmt: skip
_CONVOLUTIONS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def load_supernet(
    source: str | Path, subnet: Mapping[str, Any] | None = None, allow_pickle: bool = False
) -> SpeechTransformer:
    """A supernet in evaluation mode; subnet: only this part of it, as `Sizes.of` takes it. (Of `lighthubert_small` no
    part wider than 512 has been trained.)

    source: a file of the authors'. allow_pickle: it is a pickle, read by weights-only loading. Raises `RequestError`
    where there is none, `CheckpointError` where it does not fit.
    """
    tree = read_tree(Path(source), allow_pickle)
    settings = tree.get("cfg")
    if not isinstance(settings, dict) or not isinstance(tree.get("model"), dict):
        raise CheckpointError(f"{source}: holds no cfg and model: no checkpoint of LightHuBERT")
    model = SpeechTransformer(read_config(settings, str(source)))
    state = dict(tree["model"])
    place = "encoder.pos_conv.0.weight"
    if f"{place}_g" in state:
        state[place] = torch._weight_norm(state.pop(f"{place}_v"), state.pop(f"{place}_g"), 2)
    fill(model, {_ours(name): value for name, value in state.items() if not name.startswith(LEARNING)}, str(source))
    return model.eval() if subnet is None else cut(model, Sizes.of(**subnet))


def read_config(settings: Mapping[str, Any], source: str = "checkpoint") -> SpeechTransformerConfig:
    """Our sizes of the settings of a checkpoint; `CheckpointError` for what the encoder does not have."""
    model = settings.get("model") or {}
    check_settings(model, source, layer_type="transformer", activation_fn="gelu")
    widths, kernels, strides = zip(*convolutions(model.get("conv_feature_layers", _CONVOLUTIONS), source), strict=True)
    sizes = {ours: model.get(theirs, usual) for ours, (theirs, usual) in _SIZES.items()}
    if (depth := model.get("pos_conv_depth", 1)) > 1:
        sizes |= {"position_layers": depth, "position_kernel": max(3, sizes["position_kernel"] // depth)}
    return SpeechTransformerConfig(
        conv_widths=widths, conv_kernels=kernels, conv_strides=strides, **sizes,
        front_norm="layer" if model.get("extractor_mode", "layer_norm") == "layer_norm" else "group",
        normalize=bool((settings.get("task") or {}).get("normalize", False)),
    )  # fmt: skip


def _ours(name: str) -> str:
    if name.startswith("feature_extractor.conv_layers."):
        at, rest = name.removeprefix("feature_extractor.conv_layers.").split(".", 1)
        kind, leaf = rest.split(".")[0], rest.split(".")[-1]  # 0.weight, 2.weight, or 2.1.weight for norms of layers
        return f"front.{at}.{'conv' if kind == '0' else 'norm'}.{leaf}"
    return NAMES.ours(name) or name
