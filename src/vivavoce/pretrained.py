"""Other people's model directories: `config.json`, and weights in one safetensors file, in shards, or in a pickle."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.weights import read_pickle, read_safetensors, written_whole

CONFIG, WEIGHTS, SHARDS, PICKLE = "config.json", "model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"
INDEX = f"{WEIGHTS}.index.json"
FILES = [CONFIG, WEIGHTS, INDEX, SHARDS]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `CheckpointError` where it is missing, no JSON, or another value."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no model directory: {path.name} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: neither JSON nor text
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: a JSON object of settings is expected, this is a {type(found).__name__}")
    return found


def has_safetensors(folder: Path) -> bool:
    """Whether `read_weights` needs no pickle there."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX)) or any(folder.glob(SHARDS))


def read_weights(
    folder: Path, allow_pickle: bool = False, keep: Callable[[str], bool] | None = None
) -> dict[str, Tensor]:
    """All tensors of a directory by name, or those whose names `keep` approves.

    Of `model.safetensors`; else of the shards that the index names, else of those that are there; else of
    `pytorch_model.bin`, by weights-only loading and only with `allow_pickle`. Raises `CheckpointError`.
    """
    if has_safetensors(folder):
        files = _shards(folder)
        return {name: tensor for file in files for name, tensor in read_safetensors(file, keep).items()}
    pickles = sorted([*folder.glob("*.bin")])
    if not pickles:
        raise CheckpointError(f"{folder} holds no weights: neither {WEIGHTS} nor its index or shards are there")
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} has its weights only as a pickle ({pickles[0].name}), which is not read unasked: convert it to "
            "safetensors, or load with allow_pickle=True if you trust where it comes from"
        )
    tensors = {name: tensor for file in pickles for name, tensor in read_pickle(file).items()}
    return {name: tensor for name, tensor in tensors.items() if keep is None or keep(name)}


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob(SHARDS))
    placed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{folder / INDEX} is no index of shards: its weight_map is missing")
    names = sorted(set(placed.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder}: shard {name!r} is missing")
    return [folder / name for name in names]


def save_directory(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    preprocessor: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory of transformers' form: `config.json`, `model.safetensors`, and what a feature extractor
    is told. Raises `CheckpointError` where the disk refuses."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, said in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        if said is not None:
            with written_whole(folder / name) as part:
                part.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    with written_whole(folder / WEIGHTS) as part:
        apart = {"memory_format": torch.contiguous_format}
        own = {name: tensor.detach().cpu().clone(**apart) for name, tensor in tensors.items()}
        save_file(own, part, metadata={"format": "pt"})
