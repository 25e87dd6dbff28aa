"""Small models of Kyutai's moshi package with random weights, and directories in its format."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from codec_parity import speech_like
from parity.test_mimi import kyutai_model
from peers import peer
from vivavoce.tokenizers.pieces import SentencePieces

LEVELS, CARD, TEXT = 8, 256, 80
WORDS, MIMI = "tokenizer_spm_32k_3.model", "tokenizer-e351c8d8-checkpoint125.safetensors"

PUBLISHED = {
    "dim": 32, "text_card": TEXT, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": CARD, "num_heads": 4,
    "num_layers": 2, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 6, "max_period": 10000,
    "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 24,
    "depformer_dim_feedforward": 99, "depformer_num_heads": 4, "depformer_num_layers": 2,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, *[1] * 7, 0, *[1] * 7],
}  # fmt: skip
VARIANTS = {
    "published": {},
    "shared sets, narrow tables, norms": {
        "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4], "depformer_low_rank_embeddings": 8,
        "depformer_norm": "layer_norm", "depformer_dim_feedforward": None,
    },
    "both channels predicted": {"dep_q": 16, "depformer_weights_per_step_schedule": [*range(8), *[8] * 8]},
    "other switches": {
        "norm": "layer_norm", "gating": "none", "layer_scale": 0.5, "kv_repeat": 2, "depformer_kv_repeat": 1,
        "positional_embedding": "rope_concat", "depformer_multi_linear": False, "hidden_scale": 4, "max_period": 500,
        "depformer_num_layers": 1,
    },
    "two columns late": {"delays": [0, 0, *[2] * 7, 0, *[2] * 7]},
}  # fmt: skip


@torch.no_grad()
def language_model(variant: str = "published", seed: int = 0):
    """A random LMModel with norms that are no ones; and its configuration."""
    config = {**PUBLISHED, **VARIANTS[variant]}
    torch.manual_seed(seed)
    model = peer("moshi.models.lm").LMModel(device="cpu", dtype=torch.float32, **config).eval()
    for name, parameter in model.named_parameters():
        if parameter.squeeze().dim() == 1 and parameter.numel() > 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        elif "linears" in name or "text_linear" in name:
            parameter.mul_(3)  # likelier and less likely tokens
    return model, config


def mimi_file(folder: Path) -> None:
    """A narrow Mimi in Kyutai's format."""
    mimi = kyutai_model(speech_like(1, 24000))
    save_file({name: tensor.contiguous() for name, tensor in mimi.state_dict().items()}, folder / MIMI)


def directory(folder: Path, model, config: dict, **more) -> Path:
    """Kyutai's directory of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    mimi_file(folder)
    SentencePieces().save(folder / WORDS)
    return folder
