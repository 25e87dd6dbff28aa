"""Weights into modules, strictly: what does not fit is named. And onto a disk, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from vivavoce.errors import CheckpointError


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill `module` with `tensors`; every name and shape must agree, else `CheckpointError` names the first few."""
    own = module.state_dict()
    problems = [f"'{key}' is missing" for key in own if key not in tensors]
    problems += [f"'{key}' is not in the model" for key in tensors if key not in own]
    problems += [
        f"'{key}' is {tuple(tensors[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """`with written_whole(path) as part: save_file(tensors, part)`: a file under `path` is never a part of one.

    Raises `CheckpointError` where the disk refuses, and leaves nothing behind then.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a disk that is full
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be written: {why}; make room, or name another folder") from error
    finally:
        part.unlink(missing_ok=True)
