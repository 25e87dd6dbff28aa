"""A small packed unit LM, trained by processes that are joined as torchrun's are, by the environment."""

import torch

from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe

BACKBONE = {"kind": "decoder", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "feedforward": 48, "qkv_bias": True}


def recipe_of(steps, settings=None, **phase):
    """A language model over 12 units and their end, on a made-up process; a batch is of 6 rows."""
    stage = {
        "name": "lm", "layout": {"kind": "flat"},
        "tasks": {"continue": {"given": ["units[:prompt]"], "fills": ["units"]}},
        "backbone": BACKBONE, "heads": {"units": {"kind": "linear", "bias": False}}, "decode": {"length": "end"},
    }  # fmt: skip
    lm = {
        "name": "lm", "trains": "lm", "objective": {"kind": "next_token"}, "batch": 6, "steps": steps,
        "data": {"kind": "token_patterns", "pack": True, "context": 32},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2, "schedule": "constant", "weight_decay": 0.01, "clip": 0.5},
        "settings": {"log_every": 1, "evaluate_every": 4, "checkpoint_every": 100, **(settings or {})}, **phase,
    }  # fmt: skip
    return read_recipe({
        "system": "toy", "sample_rate": 16000, "tokenizers": {"units": {"kind": "integers", "size": 12, "end": True}},
        "streams": {"units": {"tokenizer": "units"}}, "stages": [stage], "training": [lm],
        "interaction": {"kind": "offline", "hears": "units", "speaks": "units"},
    })  # fmt: skip


def rank(directory, steps, settings):
    """One of the processes."""
    torch.set_num_threads(1)
    train_recipe(recipe_of(steps, settings), directory)
