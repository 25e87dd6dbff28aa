"""Model directories: `recipe.yaml` + `model.safetensors`. What `save` writes, `load` takes; a mismatch is refused."""

import dataclasses
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.hub import local_place
from vivavoce.nn.weights import load_module, read_metadata, read_safetensors, written_whole
from vivavoce.schema import Recipe, read_recipe
from vivavoce.schema.recipe import Backbone
from vivavoce.systems.assembly import assemble, fingerprint
from vivavoce.systems.model import Model

WEIGHTS = "model.safetensors"
EMBEDDED = ("mini",)
SIGNALS = ("tone", "echo")  # models without weights


def save(model: Model, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model directory atomically, file by file; floating weights are stored in `dtype`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    whole = self_contained(model)
    recipe = whole.model_dump(mode="json", exclude_defaults=True)
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.system.state_dict().items()
    }
    extra = {"format": "pt", "fingerprint": fingerprint(whole), "system": model.recipe.system}
    extra |= getattr(model.system, "fingerprints", {})
    with written_whole(folder / "recipe.yaml") as text, written_whole(folder / WEIGHTS) as weights:
        text.write_text(yaml.safe_dump(recipe, sort_keys=False, width=120), encoding="utf-8")
        save_file(tensors, weights, metadata=extra)


def self_contained(model: Model) -> Recipe:
    """The model's recipe, in which a backbone `from` a published model says its sizes: it needs that no more."""
    recipe = model.recipe
    if not any("from" in stage.backbone.options for stage in recipe.stages):
        return recipe
    backbone = model.system.stage.backbone
    sizes = {field.name: getattr(backbone.config, field.name) for field in dataclasses.fields(backbone.config)}
    defaults = {field.name: field.default for field in dataclasses.fields(backbone.config)}
    options = {name: value for name, value in sizes.items() if value != defaults[name]}
    if isinstance(backbone.norm, torch.nn.Identity):
        options["final_norm"] = False
    stages = [stage.model_copy(update={"backbone": Backbone(**options)}) for stage in recipe.stages]
    return recipe.model_copy(update={"stages": stages})


def load(name: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """A trained system by name ("mini"), model directory or hub id `owner/name[@revision]`, on `device`; `dtype` as
    `Model.to` has it.

    Raises `RequestError` where there is none, `CheckpointError` where its weights do not fit its recipe.
    """
    if str(name) in SIGNALS and not Path(name).exists():
        from vivavoce.systems.signal_models import SignalModel

        return SignalModel(str(name))
    folder = _place(name)
    if not (folder / "recipe.yaml").is_file():
        raise RequestError(f"no model '{name}': neither {', '.join(EMBEDDED)} nor a directory with recipe.yaml")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing; train first: vivavoce train {folder / 'recipe.yaml'}")
    model = assemble(read_recipe(folder / "recipe.yaml"))
    extra = read_metadata(weights)
    if extra.get("fingerprint") != fingerprint(model.recipe):
        raise CheckpointError(
            f"{weights} was saved with another recipe ({extra.get('fingerprint')}) than {folder / 'recipe.yaml'} "
            f"({fingerprint(model.recipe)}): streams, tokenizers, encoders and layouts must be the same"
        )
    for what, own in getattr(model.system, "fingerprints", {}).items():
        if what in extra and extra[what] != own:
            raise CheckpointError(
                f"{weights} was saved with another {what} ({extra.get(what)}) than this version makes of "
                f"{folder / 'recipe.yaml'} ({own}): train anew, or load it with the version that saved it"
            )
    tensors = read_safetensors(weights)
    widened = {n: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for n, t in tensors.items()}
    load_module(model.system, widened, str(weights))
    return model.to(device, dtype)


def _place(name: str | Path) -> Path:
    """The directory of a model; what is not on this disk is asked of the hub."""
    if not isinstance(name, str | Path):
        raise RequestError(f"a model is named by a string or a path, not {name!r}")
    if str(name) in EMBEDDED and not (Path(name) / "recipe.yaml").is_file():
        return Path(__file__).resolve().parent.parent / "models" / str(name)
    try:
        return local_place(name, "model", ["recipe.yaml", WEIGHTS])
    except RequestError as error:
        raise RequestError(f"{error} (the embedded ones: {', '.join((*EMBEDDED, *SIGNALS))})") from error
