"""Published BEATs models and tokenizers (microsoft/unilm, beats/: .pt files of {'cfg': ..., 'model': ...}) in ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.encoders.beats import Beats, BeatsConfig
from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill, fold_position
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.nn.weights import check_asked, read_pickled_tree

# Ours <- theirs
_SIZES = {
    "patch": "input_patch_size",
    "local": "embed_dim",
    "width": "encoder_embed_dim",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_embed_dim",
    "position_kernel": "conv_pos",
    "position_groups": "conv_pos_groups",
    "relative_buckets": "num_buckets",
    "relative_distance": "max_distance",
    "deep": "deep_norm",
}
_CODES = {"codes": "quant_n", "code_width": "quant_dim"}
_NAMES = Names(
    {
        "patch_embedding": "patches",
        "layer_norm": "patch_norm",
        "post_extract_proj": "projection",
        "encoder.pos_conv.0": "position",
        "encoder.layer_norm": "norm",
        "encoder.layers.0.self_attn.relative_attention_bias": "body.bias.scores",
        "encoder.layers.*.self_attn.grep_a": "body.blocks.*.gate_scale",
        "encoder.layers.*.self_attn.grep_linear": "body.blocks.*.gate",
        "encoder.layers.*.self_attn.q_proj": "body.blocks.*.query",
        "encoder.layers.*.self_attn.k_proj": "body.blocks.*.key",
        "encoder.layers.*.self_attn.v_proj": "body.blocks.*.value",
        "encoder.layers.*.self_attn.out_proj": "body.blocks.*.output",
        "encoder.layers.*.self_attn_layer_norm": "body.blocks.*.attention_norm",
        "encoder.layers.*.final_layer_norm": "body.blocks.*.feedforward_norm",
        "encoder.layers.*.fc1": "body.blocks.*.widen",
        "encoder.layers.*.fc2": "body.blocks.*.narrow",
        "quantize_layer.*": "tokenizer.map.*",
        "quantize.embedding.weight": "tokenizer.codebook.entries",
        "quantize.embedding.initted": "tokenizer.codebook.initialized",
    }
)
_POSITION = "encoder.pos_conv.0.weight"
# Statistics of the codebook, and the head of a fine-tuned model.
_UNUSED = ("quantize.cluster_size", "quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "predictor.")


def load_beats(source: str | Path, revision: str | None = None, allow_pickle: bool = False) -> Beats:
    """A published model or tokenizer, in evaluation mode.

    source: the .pt file, or a directory (or hub id) that holds one. It is a pickle: read by weights-only loading, and
    only with `allow_pickle`. Raises `RequestError` where there is nothing of that name, `CheckpointError` where what is
    there does not fit.
    """
    place = local_place(source, "encoder", ["*.pt"], revision)
    files = sorted(place.glob("*.pt")) if place.is_dir() else [place]
    if len(files) != 1:
        raise CheckpointError(f"{source}: {len(files)} .pt files, one BEATs checkpoint is expected: name the file")
    check_asked(files[0], allow_pickle)
    found = read_pickled_tree(files[0])
    if not (isinstance(found, dict) and isinstance(found.get("cfg"), dict) and isinstance(found.get("model"), dict)):
        raise CheckpointError(f"{files[0]} is no BEATs checkpoint: 'cfg' and 'model' are expected in it")
    model = Beats(read_beats_config(found["cfg"], str(files[0])))
    fill(model, our_weights(found["model"]), str(files[0]))
    return model.eval()


def read_beats_config(config: Mapping[str, Any], source: str = "config") -> BeatsConfig:
    """Our sizes for a published config; raises `CheckpointError` for what our trunk does not have."""
    check_settings(
        config, source, conv_bias=False, layer_norm_first=False, activation_fn="gelu", gru_rel_pos=True,
        relative_position_embedding=True,
    )  # fmt: skip
    check_sizes(config, source, _SIZES.values())
    found = {ours: config[theirs] for ours, theirs in _SIZES.items()}
    if found["local"] == found["width"]:
        raise CheckpointError(f"{source}: embed_dim is encoder_embed_dim, and there is no projection between them")
    return BeatsConfig(**found, **{ours: config[theirs] for ours, theirs in _CODES.items() if theirs in config})


def our_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under our names; the position's convolution, weight-normed there, as one plain weight."""
    ours = {}
    for key, value in fold_position(dict(state), _POSITION).items():
        if key.startswith(_UNUSED) or ("relative_attention_bias" in key and ".layers.0." not in key):
            continue
        name = _NAMES.ours(key) or key
        if name == "patches.weight":
            value = value.flatten(1)
        ours[name] = value.reshape(-1) if name.endswith("gate_scale") else value
    return ours
