"""A run directory: all that is needed to go on with a training, or to reproduce it.

    recipe.yaml     the recipe as resolved
    code.json       versions of the code and of torch, one entry for each start
    checkpoints/    one folder a phase (see checkpoint.py)
    metrics.jsonl   one line a logged step
    tensorboard/    the same for TensorBoard
    samples/        PHASE/step-N/*.wav, *.png
    report.html     curves, players, spectrograms, codebook health
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

import vivavoce
from vivavoce.errors import RequestError
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second training; the system frees the lock when the process dies."""
        try:
            import fcntl
        except ImportError:  # no advisory locks on this platform: the user must take care
            yield
            return
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RequestError(f"{self.path} is being trained by another process: wait or name another") from error
            yield

    def _keep_recipe(self, recipe: dict[str, Any]) -> None:
        file = self.path / "recipe.yaml"
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        if file.exists():
            old = yaml.safe_load(file.read_text())
            if old == yaml.safe_load(text):
                return
            for key in [*old, *recipe]:
                if key != "training" and old.get(key) != recipe.get(key):
                    raise RequestError(
                        f"{self.path} was begun with another recipe ('{key}' differs): name another --run"
                    )
            number = 1
            while (aside := self.path / f"recipe-{number}.yaml").exists():
                number += 1
            file.rename(aside)
        write_text(file, text)

    def _note_code(self) -> None:
        file = self.path / "code.json"
        notes = json.loads(file.read_text()) if file.exists() else []
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


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none: under a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
