"""Text LMs in transformers' directories: `config.json` with safetensors in one file or in shards, read and written."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.lm.families import Config, Shape, family
from vivavoce.lm.text_lm import TextLM
from vivavoce.nn.weights import written_whole
from vivavoce.pretrained import CONFIG, WEIGHTS, read_json, read_weights


def load_text_lm(directory: str | Path, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> TextLM:
    """A published text LM (Llama, Mistral, Qwen2, Qwen3, OPT, GPT-2 families) as our decoder.

    `RequestError` where there is no such directory, `CheckpointError` where its files are not what they should be.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise RequestError(f"no text LM '{directory}': there is no such directory")
    return text_lm_of(read_json(folder / CONFIG), read_weights(folder), folder, device, dtype)


def text_lm_of(
    config: Config, tensors: dict[str, Tensor], folder: Path, device: Any = "cpu", dtype: torch.dtype = torch.float32
) -> TextLM:
    """The same of a configuration and tensors that were read already; `folder` is named in errors."""
    kind = family(config)
    shape = shape_of(folder, config)
    if not any(name.startswith(kind.prefix) for name in tensors):
        tensors = {name if name.startswith("lm_head") else kind.prefix + name: t for name, t in tensors.items()}
    with torch.device("meta"):
        model = build(shape, dict(config))
    own = model.state_dict()
    loaded = {}
    for rule in kind.rules(shape):
        missing = [name for name in rule.theirs if name not in tensors]
        if missing:
            raise CheckpointError(f"{folder}: {missing[0]} is missing; the weights are not those of config.json")
        tensor = rule.load(tensors)
        if tensor.shape != own[rule.ours].shape:
            raise CheckpointError(
                f"{folder}: {' + '.join(rule.theirs)} is {tuple(tensor.shape)}, "
                f"config.json makes it {tuple(own[rule.ours].shape)}"
            )
        loaded[rule.ours] = tensor.to(device=device, dtype=dtype)
    model.load_state_dict(loaded, strict=True, assign=True)
    return model.to(device).eval()


def build(shape: Shape, source: Config | None = None) -> TextLM:
    """An untrained TextLM of a shape."""
    return TextLM(
        shape.transformer, shape.vocabulary, shape.tied, shape.final_norm, shape.embedding,
        dict(source) if source is not None else None,
    )


def save_text_lm(model: TextLM, directory: str | Path) -> None:
    """Write a directory that transformers loads: the configuration that the model came from, with its vocabulary now.

    `RequestError` for a model that did not come from a published configuration.
    """
    if model.source is None:
        raise RequestError("save_text_lm: this model was not built from a published configuration; give it `source`")
    from safetensors.torch import save_file

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.source, "vocab_size": model.vocabulary, "tie_word_embeddings": model.tied}
    config["dtype"] = str(model.table.weight.dtype).removeprefix("torch.")
    config.pop("torch_dtype", None)
    own, tensors = model.state_dict(), {}
    for rule in family(config).rules(family(config).shape(config)):
        tensors.update(rule.save(own[rule.ours].cpu()))
    with written_whole(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    with written_whole(folder / CONFIG) as part:
        part.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def shape_of(folder: Path, config: Config) -> Shape:
    """The shape that a configuration describes; a `CheckpointError` says what is missing or makes no model."""
    where = folder / CONFIG
    try:
        shape = family(config).shape(config)
        with torch.device("meta"):
            build(shape)
    except KeyError as error:
        raise CheckpointError(f"{where}: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, RecipeError) as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}".split("\n")[0]) from error
    return shape
