"""Model directories: `recipe.yaml` + `model.safetensors`. What `save` writes, `load` takes; a mismatch is refused."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.registry import CODECS, config_of
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.hub import local_place
from vivavoce.nn.weights import load_module, read_metadata, read_safetensors, written_whole
from vivavoce.schema import Recipe, read_recipe
from vivavoce.schema.recipe import Backbone, Part
from vivavoce.systems import imports
from vivavoce.systems.assembly import assemble, fingerprint
from vivavoce.systems.engines import check_engine, use_engine
from vivavoce.systems.model import Model
from vivavoce.tokenizers import unit_parts
from vivavoce.tokenizers.text_aligned import TextAlignedCodec
from vivavoce.tokenizers.units import UnitCodec

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
    for key, tokenizer in with_files(model).items():
        with written_whole(folder / f"{key}{tokenizer.file}") as part:
            tokenizer.save(part)


def with_files(model: Model) -> dict[str, Any]:
    """The tokenizers that have a file of their own in a model directory, by their names in the recipe."""
    streams = getattr(model.system, "streams", {})
    alone = None if streams else getattr(model.system, "codec", None)
    made = {stream.tokenizer: getattr(streams.get(name), "tokenizer", alone)
            for name, stream in model.recipe.streams.items() if stream.tokenizer is not None}  # fmt: skip
    return {key: tokenizer for key, tokenizer in made.items() if hasattr(tokenizer, "file")}


def self_contained(model: Model) -> Recipe:
    """The model's recipe, in which a backbone `from` a published model says its sizes: it needs that no more, nor do
    units and codecs the encoder they were made by. A tokenizer's file lies beside it in place of its path."""
    recipe, several = model.recipe, getattr(model.system, "stages", None)
    stages = []
    for stage in recipe.stages:
        if "from" in stage.backbone.options:
            decoder = (several[stage.name].stage if several else model.system.stage).backbone
            stage = stage.model_copy(update={"backbone": Backbone(**sizes_of(decoder))})
        stages.append(stage)
    tokenizers = dict(recipe.tokenizers)
    for key, tokenizer in with_files(model).items():
        if "path" in tokenizers[key].options:
            rest = {name: value for name, value in tokenizers[key].options.items() if name != "path"}
            tokenizers[key] = Part(kind=tokenizers[key].kind, **{**rest, "size": len(tokenizer)})
    codec = getattr(model.system, "codec", None)
    if isinstance(codec, UnitCodec) and recipe.interaction is not None:
        key = recipe.streams[recipe.interaction.speaks].tokenizer or ""
        own = unit_parts.self_contained(codec, tokenizers[key].options)
        tokenizers[key] = Part(kind=tokenizers[key].kind, **own)
    built = config_of(codec) if isinstance(codec, Codec) else None
    if built is not None:
        tokenizers |= {key: Part(**built) for key in _of_codec(recipe) if _names_source(tokenizers[key])}
    if isinstance(codec, TextAlignedCodec):
        tokenizers |= {key: Part(kind=part.kind, **codec.self_contained(part.options))
                       for key, part in tokenizers.items() if part.kind == "text_aligned"}  # fmt: skip
    return recipe.model_copy(update={"stages": stages, "tokenizers": tokenizers})


def _of_codec(recipe: Recipe) -> list[str]:
    """The tokenizers that are the system's codec: one, or none."""
    if recipe.interaction is not None:
        return [recipe.streams[recipe.interaction.speaks].tokenizer or ""]
    return [key for key, part in recipe.tokenizers.items() if part.kind in CODECS]


def _names_source(part: Part) -> bool:
    """Whether an option of its options names a place where weights come from."""
    return any(isinstance(each, Mapping) and each.get("source") for each in part.options.values())


def sizes_of(decoder: Any) -> dict[str, Any]:
    """A decoder's options as a recipe writes them: what differs from the defaults."""
    sizes = {field.name: getattr(decoder.config, field.name) for field in dataclasses.fields(decoder.config)}
    defaults = {field.name: field.default for field in dataclasses.fields(decoder.config)}
    options = {name: value for name, value in sizes.items() if value != defaults[name]}
    if isinstance(decoder.norm, torch.nn.Identity):
        options["final_norm"] = False
    return options


def load(
    name: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    adapter: str | Path | None = None,
    allow_pickle: bool = False,
    units: str | Path | None = None,
    engine: str = "torch",
    weights: str = "float32",
) -> Model:
    """A trained system by name ("mini"), model directory or hub id `owner/name[@revision]`, on `device`; `dtype` as
    `Model.to` has it.

    Published weights in other people's formats load too: Kyutai's Moshi (`adapter`: moshi-finetune's LoRA or whole
    weights, a file, directory or hub id), transformers' `moshi` and `csm`, and unit language models in the form of its
    text families (`units`: a directory of the units, by which such a model hears, and speaks if they have a vocoder).
    allow_pickle: read those that are pickled, by weights-only loading.

    engine: what computes single steps of the language model, `torch` or `openvino` (see `vivavoce.systems.engines`),
    for which `weights` may be `int8`. Raises `RequestError` where there is no such model or engine, `CheckpointError`
    where its weights do not fit.
    """
    check_engine(engine, weights)
    model = _load(name, device, dtype, adapter, allow_pickle, units)
    use_engine(model, engine, weights)
    return model


def _load(
    name: str | Path, device: str, dtype: torch.dtype | None, adapter: str | Path | None, allow_pickle: bool,
    units: str | Path | None,
) -> Model:
    if str(name) in SIGNALS and not Path(name).exists():
        from vivavoce.systems.signal_models import SignalModel

        return SignalModel(str(name))
    folder = _place(name, allow_pickle)
    if folder.is_dir() and not (folder / "recipe.yaml").is_file() and imports.is_published(folder):
        return imports.load_published(folder, device, dtype, adapter, allow_pickle, units)
    if units is not None:
        raise RequestError(f"units '{units}': {name} is no unit language model in transformers' format")
    if adapter is not None:
        raise RequestError(f"adapter '{adapter}': {name} is no checkpoint of Kyutai's, which such adapters are of")
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
    for key, tokenizer in with_files(model).items():
        if (folder / f"{key}{tokenizer.file}").is_file():
            tokenizer.read(folder / f"{key}{tokenizer.file}")
    return model.to(device, dtype)


def begin_with(model: Model, name: str | Path) -> None:
    """Give a model the weights of another one of the same streams and sizes, by name, and the files of its tokenizers.

    Raises `CheckpointError` that names the first tensors that differ; otherwise as `load`.
    """
    other = load(name)
    load_module(model.system, other.system.state_dict(), f"weights '{name}'")
    theirs = with_files(other)
    for key, tokenizer in with_files(model).items():
        if key in theirs and type(theirs[key]) is type(tokenizer):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, f"{key}{tokenizer.file}")
                theirs[key].save(file)
                tokenizer.read(file)


def _place(name: str | Path, allow_pickle: bool = False) -> Path:
    """The directory of a model; what is not on this disk is asked of the hub."""
    if not isinstance(name, str | Path):
        raise RequestError(f"a model is named by a string or a path, not {name!r}")
    if str(name) in EMBEDDED and not (Path(name) / "recipe.yaml").is_file():
        return Path(__file__).resolve().parent.parent / "models" / str(name)
    try:
        files = ["recipe.yaml", *imports.FILES, *(imports.PICKLES if allow_pickle else [])]
        return local_place(name, "model", files)
    except RequestError as error:
        raise RequestError(f"{error} (the embedded ones: {', '.join((*EMBEDDED, *SIGNALS))})") from error
