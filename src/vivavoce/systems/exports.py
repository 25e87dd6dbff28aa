"""Models and tokenizers written in other formats, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivavoce.codecs.checkpoint import CONFIG, save_codec
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.onnx_export import export_onnx
from vivavoce.encoders.units import CONFIG as UNITS
from vivavoce.errors import RequestError
from vivavoce.hub import local_place
from vivavoce.systems import imports
from vivavoce.systems.checkpoint import EMBEDDED, save
from vivavoce.systems.codec_model import CodecModel
from vivavoce.systems.imports.unit_lm import save_unit_lm
from vivavoce.systems.model import Model
from vivavoce.tokenizers.to_transformers import save_transformers


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """As our own directory."""
    if isinstance(tokenizer, Codec):
        save_codec(tokenizer, folder)
    elif hasattr(tokenizer, "save"):
        tokenizer.save(folder)
    else:
        raise RequestError(f"a {type(tokenizer).__name__} has no directory of ours")


FORMATS: dict[str, Callable[[Any, Path, torch.dtype], None]] = {"transformers": save_unit_lm, "vivavoce": save}
# Of codecs and other tokenizers, as `load_tokenizer` gives them: their own precision. What there is to say comes back.
CODEC_FORMATS: dict[str, Callable[[Any, Path], list[str] | None]] = {
    "transformers": save_transformers,
    "vivavoce": _save_tokenizer,
    "onnx": export_onnx,
}
NAMES = list(dict.fromkeys([*FORMATS, *CODEC_FORMATS]))


def is_model(name: str | Path) -> bool:
    """Whether `vivavoce.load` opens what this names; what `load_tokenizer` alone opens is none."""
    if str(name) in EMBEDDED:
        return True
    place = local_place(name, "model", ["recipe.yaml", CONFIG, UNITS, "config.json"])
    return place.is_dir() and ((place / "recipe.yaml").is_file() or imports.is_published(place))


def save_as(model: Any, form: str, directory: str | Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """Write a model (its weights in `dtype`) or a tokenizer to a directory in the format `form`; what there is to say
    about what was written.

    `RequestError` for a format that there is not, one that cannot hold the model, and a place that holds something
    else.
    """
    if form not in NAMES:
        raise RequestError(f"format '{form}': there is {', '.join(NAMES)}")
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is there already and not an empty folder: name another one")
    if isinstance(model, CodecModel) and form == "transformers":
        model = model.system.codec
    if not isinstance(model, Model):
        return CODEC_FORMATS[form](model, folder) or []
    if form not in FORMATS:
        raise RequestError(f"{form} is a format of codecs: {model.name} is a whole model")
    FORMATS[form](model, folder, dtype)
    return []
