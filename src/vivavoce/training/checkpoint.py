"""Checkpoints on disk: safetensors and JSON only, complete or absent, verified when read.

    checkpoints/PHASE/step-00001000/
        MODULE.safetensors      weights and buffers of each module
        ema/MODULE.safetensors  averaged weights, where the phase keeps them
        state.safetensors       tensors of optimizers and task
        state.json              step, time, the rest of the state, the results that the phase was begun on (phase ->
                                digest of its weights), and the size of every file

A checkpoint is written beside its final name, synced and renamed: what bears the name is whole, whenever the machine
stops.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.weights import read_safetensors
from vivavoce.training.errors import TrainingError

TENSOR = "__tensor__"  # in state.json this key stands for a tensor in state.safetensors


@dataclass
class Checkpoint:
    """All that a phase needs to go on after `step` finished steps."""

    step: int
    elapsed: float  # seconds trained
    finished: bool
    modules: Mapping[str, Mapping[str, Tensor]]
    averages: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)  # tree of tensors and JSON values
    needs: Mapping[str, str] = field(default_factory=dict)  # phase -> digest of its weights when this one began


def save(checkpoint: Checkpoint, folder: Path, keep: int = 2) -> Path:
    """Write `folder/step-N` and remove all but the newest `keep`. Returns its path."""
    final = folder / f"step-{checkpoint.step:08d}"
    writing = folder / f".writing-{final.name}"
    try:
        for left in folder.glob(".writing-*"):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        (writing / "ema").mkdir(parents=True)
        for name, tensors in checkpoint.modules.items():
            _write(writing / f"{name}.safetensors", tensors)
        for name, tensors in checkpoint.averages.items():
            _write(writing / "ema" / f"{name}.safetensors", tensors)
        parts: dict[str, Tensor] = {}
        state = _flatten(checkpoint.state, "", parts)
        _write(writing / "state.safetensors", parts)
        sizes = {str(p.relative_to(writing)): p.stat().st_size for p in sorted(writing.rglob("*.safetensors"))}
        record = {
            "step": checkpoint.step,
            "elapsed": checkpoint.elapsed,
            "finished": checkpoint.finished,
            "modules": list(checkpoint.modules),
            "averages": list(checkpoint.averages),
            "state": state,
            "needs": dict(checkpoint.needs),
            "sizes": sizes,
        }
        with open(writing / "state.json", "w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        _replace(writing, final)
    except (OSError, SafetensorError) as error:  # which of them says that the disk is full depends on the file
        shutil.rmtree(writing, ignore_errors=True)
        good, why = latest_path(folder), getattr(error, "strerror", None) or error
        raise TrainingError(
            f"cannot write the checkpoint {final}: {why}; last good checkpoint: {good or 'none'}. "
            "Make room, or mend what is in its way, and start the same command again: it goes on from there"
        ) from error
    for old in _paths(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a phase, or None. A damaged one is passed over for the one before it."""
    for path in reversed(_paths(folder)):
        try:
            return load(path)
        except CheckpointError:
            continue
    return None


def latest_path(folder: Path) -> Path | None:
    """Where the newest whole checkpoint lies; only names and sizes are checked."""
    for path in reversed(_paths(folder)):
        try:
            _record(path)
            return path
        except CheckpointError:
            continue
    return None


def is_finished(folder: Path) -> bool:
    """Whether a phase has reached the end of its budget."""
    path = latest_path(folder)
    return path is not None and bool(_record(path)["finished"])


def needs(folder: Path) -> dict[str, str]:
    """The results that a phase was begun on: phase -> digest. Empty where there is no checkpoint, or an older one that
    does not say."""
    path = latest_path(folder)
    return {} if path is None else dict(_record(path).get("needs", {}))


def digest(files: Mapping[str, Path]) -> str:
    """What tells weights from others: of safetensors files by name of their module."""
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        with open(path, "rb") as file:
            found.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return found.hexdigest()[:32]


def load(path: Path) -> Checkpoint:
    """Read one checkpoint; a damaged one raises CheckpointError."""
    record = _record(path)
    try:
        return Checkpoint(
            step=record["step"],
            elapsed=record["elapsed"],
            finished=record["finished"],
            modules={name: read_safetensors(path / f"{name}.safetensors") for name in record["modules"]},
            averages={name: read_safetensors(path / "ema" / f"{name}.safetensors") for name in record["averages"]},
            state=_unflatten(record["state"], read_safetensors(path / "state.safetensors")),
            needs=record.get("needs", {}),
        )
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged: {error} is missing") from error


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for key in ("step", "elapsed", "finished", "modules", "averages", "state"):
            record[key]
        for name, size in record["sizes"].items():
            if (path / name).stat().st_size != size:
                raise CheckpointError(f"{path / name} is damaged: not of the {size} bytes that were written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from error
    return record


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # copies: tied weights share memory, which the format refuses
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _replace(writing: Path, final: Path) -> None:
    if final.exists():  # the same step again, as after a damaged successor: the old one steps aside first
        aside = final.with_name(f".old-{final.name}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        writing.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        writing.rename(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The tree with tensors replaced by their names; the tensors go into `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): _flatten(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _unflatten(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value
