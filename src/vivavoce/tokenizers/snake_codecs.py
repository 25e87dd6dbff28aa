"""DAC and SNAC of other people: from their configuration to ours, then weights by name.

- directories that transformers' `save_pretrained` wrote, of model_type dac
- the weights file of descript-audio-codec (`weights_16khz.pth`, …): a pickle of weights and of the sizes that made them
- SNAC's directories: `config.json` with the package's arguments, and `pytorch_model.bin` or `model.safetensors`
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.dac import DACConfig, build_dac
from vivavoce.codecs.snac import SNACConfig, build_snac
from vivavoce.codecs.snake_weights import fill_snake
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.weights import check_asked, read_pickled_tree
from vivavoce.pretrained import CONFIG, PICKLE, has_safetensors, read_weights

# Ours <- theirs.
DAC = {
    "sample_rate": "sampling_rate",
    "encoder_dim": "encoder_hidden_size",
    "encoder_rates": "downsampling_ratios",
    "decoder_dim": "decoder_hidden_size",
    "codebooks": "n_codebooks",
    "codebook_size": "codebook_size",
}


def dac_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Codec:
    """DAC from what transformers' `config.json` says, and the tensors beside it; `CheckpointError` names `where`."""
    arguments = {
        **{ours: config[theirs] for ours, theirs in DAC.items()},
        "sample_rate": int(config["sampling_rate"]),
        "decoder_rates": config.get("upsampling_ratios") or list(reversed(config["downsampling_ratios"])),
        "latent_dim": config.get("hidden_size"),
        "quantizer": {
            "codebook_width": config["codebook_dim"],
            "dropout": float(config.get("quantizer_dropout") or 0),
            "commitment": config.get("commitment_loss_weight", 0.25),
            "codebook": config.get("codebook_loss_weight", 1.0),
        },
    }
    codec = build_dac(DACConfig.of(arguments))
    fill_snake(codec, tensors, "transformers", where)
    return codec.eval()


# The defaults are those of dac.model.dac.DAC; the file's metadata has all of them.
DESCRIPT = {
    "sample_rate": ("sample_rate", 44100),
    "encoder_dim": ("encoder_dim", 64),
    "encoder_rates": ("encoder_rates", [2, 4, 8, 8]),
    "decoder_dim": ("decoder_dim", 1536),
    "decoder_rates": ("decoder_rates", [8, 8, 4, 2]),
    "latent_dim": ("latent_dim", None),
    "codebooks": ("n_codebooks", 9),
    "codebook_size": ("codebook_size", 1024),
}


def dac_from_descript(path: Path, allow_pickle: bool = False) -> Codec:
    """DAC from the package's own file, as its `save(path, package=False)` writes it and its releases have it."""
    check_asked(path, allow_pickle)
    found = read_pickled_tree(path)
    try:
        tensors, said = found["state_dict"], dict(found["metadata"]["kwargs"])
        if not any(name.startswith("quantizer.quantizers.") for name in tensors):
            raise KeyError("quantizer.quantizers.0")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: no weights file of descript-audio-codec: {error} is missing") from None
    quantizer = {"codebook_width": said.get("codebook_dim", 8), "dropout": float(said.get("quantizer_dropout") or 0)}
    arguments = {ours: said.get(theirs, default) for ours, (theirs, default) in DESCRIPT.items()}
    try:
        codec = build_dac(DACConfig.of({**arguments, "quantizer": quantizer}))
    except RecipeError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fill_snake(codec, tensors, "original", str(path))
    return codec.eval()


def is_snac(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is SNAC's: it names no model_type, but what no other codec has."""
    return "vq_strides" in config and "encoder_rates" in config


def snac_from_package(folder: Path, config: Mapping[str, Any], allow_pickle: bool = False) -> Codec:
    """SNAC from a published directory; what its configuration leaves out is the package's default."""
    if not has_safetensors(folder):
        check_asked(folder / PICKLE, allow_pickle)
    defaults = SNACConfig()
    names = ("encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates", "latent_dim", "codebook_size",
             "vq_strides", "attn_window_size", "noise", "depthwise")  # fmt: skip
    arguments = {name: config.get(name, getattr(defaults, name)) for name in names}
    try:
        codec = build_snac(
            SNACConfig.of(
                {
                    **arguments,
                    "sample_rate": int(config.get("sampling_rate", defaults.sample_rate)),
                    "quantizer": {"codebook_width": config.get("codebook_dim", 8)},
                }
            )
        )
    except (RecipeError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    fill_snake(codec, read_weights(folder, allow_pickle), "original", str(folder))
    return codec.eval()
