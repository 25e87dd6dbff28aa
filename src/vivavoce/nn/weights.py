"""Weights into modules, strictly: what does not fit is named. From files of others, and onto a disk, whole or not."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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


def load_part(module: nn.Module, own: Mapping[str, Tensor], where: str) -> None:
    """Fill the parameters `own` of a module; `CheckpointError` names the first that has another shape."""
    shapes = {name: parameter.shape for name, parameter in module.state_dict().items() if name in own}
    for name, tensor in own.items():
        if name not in shapes or tensor.shape != shapes[name]:
            wanted = tuple(shapes.get(name, ()))
            raise CheckpointError(f"{where}: {name} is {tuple(tensor.shape)} there, {wanted} by its configuration")
    module.load_state_dict(dict(own), strict=False)


def read_safetensors(path: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or those whose names `keep` approves.

    Raises `CheckpointError` if it is missing, cut short, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the weights are expected there")
    try:
        with safe_open(str(path), framework="pt") as file:
            names = [name for name in file.keys() if keep is None or keep(name)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short: {error}") from error


def check_asked(path: Path, allow_pickle: bool) -> None:
    """Raise `CheckpointError` for a pickle that nobody has said may be read."""
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is a pickle, which is not read unasked: load with allow_pickle=True if you trust where it comes "
            "from"
        )


def read_pickled_tree(path: Path) -> Any:
    """All that a foreign pickled checkpoint holds, read by torch's weights-only loading: no code in it runs.

    Raises `CheckpointError` where it is no checkpoint, or needs more than tensors and plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} holds more than weights, or is no checkpoint: {error}".split("\n")[0]) from error


def read_pickle(path: Path, inside: Sequence[str] = ("model", "state_dict", "best_state")) -> dict[str, Tensor]:
    """Tensors of a foreign pickled checkpoint; see `read_pickled_tree`.

    inside: keys under which the tensors may stand. Raises `CheckpointError` for whatever is no such file.
    """
    found = read_pickled_tree(path)
    for key in inside:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    named = found.items() if isinstance(found, dict) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors under their names")
    return tensors


def hash_tensors(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    """Feed names, shapes, types and bytes of `tensors` to a digest, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


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
