"""A run directory: all that is needed to go on with a training, or to reproduce it.

    recipe.yaml     the recipe as resolved; of a finished run, the model's own, which names no place of other weights
    recipe-given.yaml  what a finished run was given, where that named one
    code.json       versions of the code and of torch, one entry for each start
    checkpoints/    one folder a phase (see checkpoint.py)
    metrics.jsonl   one line a logged step
    tensorboard/    the same for TensorBoard
    samples/        PHASE/step-N/*.wav, *.png
    report.html     curves, players, spectrograms, codebook health

Several processes may train phases of one run at a time: each holds its phase, and for a moment what they share, by a
lock under .locks/.
"""

import errno
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import vivavoce
from vivavoce.errors import RecipeError, RequestError
from vivavoce.training import checkpoint


class RunDirectory:
    """The folder of one training. `open` makes or resumes it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path, recipe: Mapping[str, Any] | None = None) -> "RunDirectory":
        """Make the folder, or take it up again.

        A run is resumed only with its own recipe: what differs outside `training` is refused. Changes of `training`
        (a longer budget, another rate) are taken over; the former recipe stays as `recipe-1.yaml`, ….
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RequestError(f"--run {path} is a file: name a folder")
        run.path.mkdir(parents=True, exist_ok=True)
        if os.environ.get("RANK", "0") != "0":  # under torchrun the first process keeps the books
            return run
        with run.locked("notes", patience=None):
            if recipe is not None:
                run._keep_recipe(dict(recipe))
            run._note_code()
        return run

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def checkpoints(self, phase: str) -> Path:
        """Folder of a phase's checkpoints."""
        return self.path / "checkpoints" / phase

    def samples(self, phase: str, step: int) -> Path:
        """Folder of the samples of one step."""
        return self.path / "samples" / phase / f"step-{step:08d}"

    def phases(self) -> list[str]:
        """Phases that have a checkpoint, in the order in which they were begun."""
        root = self.path / "checkpoints"
        if not root.is_dir():
            return []
        begun = [(p.stat().st_ctime, p.name) for p in root.iterdir() if checkpoint.latest_path(p)]
        return [name for _, name in sorted(begun)]

    def weights(self, phase: str, averaged: bool = True) -> dict[str, Path]:
        """Module name -> newest safetensors file of a phase; the averaged weights where there are and asked for."""
        path = checkpoint.latest_path(self.checkpoints(phase))
        if path is None:
            raise RequestError(f"{self.path} has no checkpoint of a phase '{phase}'; it has {self.phases()}")
        files = {p.stem: p for p in sorted(path.glob("*.safetensors")) if p.stem != "state"}
        if averaged:
            files.update({p.stem: p for p in sorted((path / "ema").glob("*.safetensors"))})
        return files

    def digest(self, phase: str) -> str:
        """What tells a phase's result (see `weights`) from another."""
        return checkpoint.digest(self.weights(phase))

    def training(self, phase: str, patience: float = 0.0) -> AbstractContextManager[None]:
        """Hold a phase against a second training of it; RequestError where it is held `patience` seconds later."""
        return self.locked(f"phase-{phase}", patience)

    @contextmanager
    def locked(self, what: str, patience: float | None = 0.0) -> Iterator[None]:
        """Hold a part of the run against other processes, or wait for it up to `patience` seconds (None: as long as it
        takes). The system frees the lock when the process dies."""
        try:
            import fcntl
        except ImportError:  # no advisory locks on this platform: the user must take care
            yield
            return
        folder = self.path / ".locks"
        folder.mkdir(exist_ok=True)
        with open(folder / what, "w") as file:
            end = time.monotonic() + (patience or 0.0)
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if patience is None else fcntl.LOCK_NB))
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= end:
                        raise RequestError(
                            f"{what.replace('-', ' ', 1)} of {self.path} is being trained by another process: wait "
                            "for it, or name another --run"
                        ) from error
                    time.sleep(0.1)
            yield

    def _keep_recipe(self, recipe: dict[str, Any]) -> None:
        """Refuse another recipe than the run's: neither what it was given nor, of a finished one, the model's own."""
        file = self.path / "recipe.yaml"
        known = {each: _read_recipe(each) for each in (self._given, file) if each.exists()}
        if recipe in known.values():
            return
        different = [
            [key for key in [*old, *recipe] if key != "training" and old.get(key) != recipe.get(key)]
            for old in known.values()
        ]
        if known and all(different):
            raise RequestError(
                f"{self.path} was begun with another recipe ('{different[0][0]}' differs): name another --run"
            )
        if file.exists():
            number = 1
            while (aside := self.path / f"recipe-{number}.yaml").exists():
                number += 1
            file.rename(aside)
        for each, old in (known or {file: recipe}).items():
            write_text(each, _recipe_text({**old, "training": recipe.get("training")}))

    @property
    def _given(self) -> Path:
        return self.path / "recipe-given.yaml"

    def keep_given(self, recipe: Mapping[str, Any]) -> None:
        """Remember what the run was given, before `recipe.yaml` becomes the model's own."""
        write_text(self._given, _recipe_text(recipe))

    def _note_code(self) -> None:
        file = self.path / "code.json"
        try:
            notes = list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []
        except (ValueError, TypeError):  # they are for people: no reason not to go on
            file.rename(self.path / "code-damaged.json")
            notes = []
        notes.append(
            {
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "vivavoce": vivavoce.__version__,
                "commit": _commit(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.platform(),
                "threads": torch.get_num_threads(),
                "command": sys.argv,
            }
        )
        write_text(file, json.dumps(notes, indent=1))


def _recipe_text(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)


def _read_recipe(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise RecipeError(f"{file} is damaged, so that nobody knows whose run this is: name another --run")
    return found


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: under a temporary name, then renamed. An OSError names `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing. An OSError names `path`."""
    with open(path, "ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):  # what fits is written, and only a second write would say why no more
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from error


def _commit() -> str | None:
    """Git commit of the code that runs, with `+` when files were changed; None outside a checkout."""
    folder = Path(vivavoce.__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=folder, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
