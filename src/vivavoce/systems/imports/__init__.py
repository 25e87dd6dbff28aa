"""Published models in other people's formats, recognised by what a directory holds."""

from pathlib import Path

import torch

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.pretrained import CONFIG, PICKLE, read_json
from vivavoce.systems.model import Model

# Of a hub repository, what such models need; transformers' shards and Kyutai's files have names of their own.
FILES = [
    *(CONFIG, "generation_config.json", "tokeniser_config.json"),
    *("*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "*.model"),
]
PICKLES = [PICKLE, "*.bin", "*.pt"]


def is_published(folder: Path) -> bool:
    """Whether a directory holds a model that `load_published` opens."""
    return kind_of(folder) is not None


def kind_of(folder: Path) -> str | None:
    """`kyutai`, transformers' `moshi` or `csm`, or `unit_lm`, a text LM's form over units; None for anything else."""
    from vivavoce.systems.imports.kyutai import is_kyutai

    if is_kyutai(folder):
        return "kyutai"
    if not (folder / CONFIG).is_file():
        return None
    from vivavoce.systems.imports.unit_lm import is_unit_lm

    config = read_json(folder / CONFIG)
    found = config.get("model_type")
    return found if found in ("moshi", "csm") else "unit_lm" if is_unit_lm(folder, config) else None


def load_published(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapter: str | Path | None = None,
    allow_pickle: bool = False,
    units: str | Path | None = None,
) -> Model:
    """A published model from its directory; adapter: a file or directory of moshi-finetune's, of Kyutai's models;
    units: a directory of those that a unit language model is of.

    Raises `CheckpointError` for what does not fit, `RequestError` for an adapter that there is not.
    """
    kind, place = kind_of(folder), None
    if adapter is not None:
        from vivavoce.hub import local_place

        place = local_place(adapter, "adapter", FILES)
        if kind != "kyutai":
            raise RequestError(f"adapter '{adapter}': {folder} is no checkpoint of Kyutai's: adapters are of those")
    if kind == "unit_lm":
        from vivavoce.systems.imports.unit_lm import load_unit_lm

        return load_unit_lm(folder, device, dtype, allow_pickle, None if units is None else str(units))
    if units is not None:
        raise RequestError(f"units '{units}': {folder} is no unit language model in transformers' format")
    if kind == "kyutai":
        from vivavoce.systems.imports.moshi import load_kyutai

        return load_kyutai(folder, device, dtype, place, allow_pickle)
    if kind == "moshi":
        from vivavoce.systems.imports.moshi_transformers import load_transformers

        return load_transformers(folder, device, dtype, allow_pickle)
    if kind == "csm":
        from vivavoce.systems.imports.csm import load_csm

        return load_csm(folder, device, dtype, allow_pickle)
    known = "Kyutai's Moshi, transformers' moshi and csm, unit language models of transformers' text families"
    raise CheckpointError(f"{folder} holds no published model that is known here: there are {known}")

