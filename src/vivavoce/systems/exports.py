"""Models written in other formats, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivavoce.codecs.onnx_export import export_onnx
from vivavoce.errors import RequestError
from vivavoce.systems.checkpoint import save
from vivavoce.systems.imports.unit_lm import save_unit_lm

FORMATS: dict[str, Callable[[Any, Path, torch.dtype], None]] = {"transformers": save_unit_lm, "vivavoce": save}
# Of codecs and other tokenizers, as `load_tokenizer` gives them: their own precision.
CODEC_FORMATS: dict[str, Callable[[Any, Path], None]] = {"onnx": export_onnx}


def save_as(model: Any, form: str, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model to a directory in the format `form`, weights in `dtype`; `RequestError` for a format that there is
    not, one that cannot hold the model, and a place that holds something else."""
    if form not in {**FORMATS, **CODEC_FORMATS}:
        raise RequestError(f"format '{form}': there is {', '.join([*FORMATS, *CODEC_FORMATS])}")
    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is there already and not an empty folder: name another one")
    if form in CODEC_FORMATS:
        CODEC_FORMATS[form](model, folder)
    else:
        FORMATS[form](model, folder, dtype)
