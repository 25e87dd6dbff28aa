"""Published MR-HuBERT checkpoints (fairseq's, as S3PRL has made plain files of them) into our encoder."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vivavoce.encoders.fairseq import BLOCK, convolutions, read_tree
from vivavoce.encoders.multi_resolution import MultiResolution, MultiResolutionConfig
from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill
from vivavoce.errors import CheckpointError

# The three stacks of blocks, whose blocks are counted on here from one to the next, and the norms of each.
STACKS = {"encoders.0": "norm", "middle_encoder": "middle_norm", "decoders.0": "last_norm"}
NAMES = Names({
    "layer_norm": "front_norm",
    "post_extract_proj": "projection",
    "encoders.0.pos_conv.0": "position",
    **{f"{theirs}.layer_norm": ours for theirs, ours in STACKS.items()},
    **{f"{theirs}_modules.0.{part}sample_conv.{number}": f"{ours}.{part}{kind}"
       for theirs, ours in (("downsample", "slower"), ("upsample", "faster"))
       for part in ("up", "down") for number, kind in (("0", ""), ("2", "_norm"))},
})  # fmt: skip
LEARNING = ("mask_emb", "final_projs.", "label_embs_concat.", "target_glus.")  # what features do not need
_SIZES = {
    "width": "encoder_embed_dim", "heads": "encoder_attention_heads", "hidden": "encoder_ffn_embed_dim",
    "position_kernel": "conv_pos", "position_groups": "conv_pos_groups", "stable": "layer_norm_first",
    "conv_bias": "conv_bias", "rate_kernel": "conv_adapator_kernal", "plain": "use_plain_updownsample",
}  # fmt: skip


def load_mr_hubert(source: str | Path, allow_pickle: bool = False) -> MultiResolution:
    """MR-HuBERT at two rates with published weights, in evaluation mode.

    source: a file of S3PRL's (`task_cfg`, `model_cfg`, `model_weight`). allow_pickle: it is a pickle, read by
    weights-only loading. Raises `RequestError` where there is none, `CheckpointError` where it does not fit.
    """
    tree = read_tree(Path(source), allow_pickle)
    if "model_weight" not in tree or "label_rate_ratios" not in tree.get("model_cfg", {}):
        raise CheckpointError(f"{source}: holds no model_cfg with label_rate_ratios: no checkpoint of MR-HuBERT")
    config = _config(tree["model_cfg"], bool(tree.get("task_cfg", {}).get("normalize", False)), str(source))
    state = dict(tree["model_weight"])
    place = "encoders.0.pos_conv.0.weight"
    if f"{place}_g" in state:
        state[place] = torch._weight_norm(state.pop(f"{place}_v"), state.pop(f"{place}_g"), 2)
    ours = {_our_name(name, config): value for name, value in state.items() if not name.startswith(LEARNING)}
    model = MultiResolution(config)
    fill(model, ours, str(source))
    return model.eval()


def _config(settings: Mapping[str, Any], normalize: bool, source: str) -> MultiResolutionConfig:
    check_sizes(settings, source, [*_SIZES.values(), "conv_feature_layers", "extractor_mode", "encoder_layers"])
    check_settings(settings, source, label_rate_ratios=[1, 2], layer_type="transformer", activation_fn="gelu")
    widths, kernels, strides = zip(*convolutions(settings["conv_feature_layers"], source), strict=True)
    layers, apart = int(settings["encoder_layers"]), settings.get("override_encoder_layers") or ""
    parts = tuple(ast.literal_eval(apart)) if apart else (layers,) * 3
    return MultiResolutionConfig(
        conv_widths=widths, conv_kernels=kernels, conv_strides=strides, parts=parts, layers=sum(parts),
        front_norm="layer" if settings["extractor_mode"] == "layer_norm" else "group", normalize=normalize,
        **{ours: settings[theirs] for ours, theirs in _SIZES.items()},
    )  # fmt: skip


def _our_name(name: str, config: MultiResolutionConfig) -> str:
    if name.startswith("feature_extractor.conv_layers."):
        at, rest = name.removeprefix("feature_extractor.conv_layers.").split(".", 1)
        kind, leaf = rest.split(".")[0], rest.split(".")[-1]  # 0.weight, 2.weight, or 2.1.weight for norms of layers
        return f"front.{at}.{'conv' if kind == '0' else 'norm'}.{leaf}"
    for number, stack in enumerate(STACKS):
        if name.startswith(f"{stack}.layers."):
            at, _, rest = name.removeprefix(f"{stack}.layers.").partition(".")
            part, _, leaf = rest.rpartition(".")
            return f"blocks.{int(at) + sum(config.parts[:number])}.{BLOCK.get(part, part)}.{leaf}"
    return NAMES.ours(name) or name
