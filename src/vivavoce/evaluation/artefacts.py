"""What a model answered, kept as JSON lines beside flac files, so that an evaluation can go on and be listened to."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vivavoce.audio import Audio, read, write
from vivavoce.data.files import Journal, atomic
from vivavoce.errors import DataError


class Artefacts:
    """Item id -> artefact (a mapping of JSON values and `Audio`), in memory, or in `folder/task/` where given.

    Each artefact is on disk before the next is asked for; one that a kill cut short is asked for again. `identity`
    says whose answers these are: raises `DataError` where the folder holds those of another model or settings.
    `asked` of an item (a digest) says what it was: answers to another item of that name are refused as well.
    """

    def __init__(self, folder: Path | None, task: str, identity: Mapping[str, Any]):
        self._rows: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, str | None] = {}
        self._folder = None if folder is None else Path(folder) / task
        self._journal: Journal | None = None
        if self._folder is None:
            return
        (self._folder / "audio").mkdir(parents=True, exist_ok=True)
        about = self._folder / "identity.json"
        text = json.dumps(identity, sort_keys=True, indent=1, default=str)
        if about.exists() and about.read_bytes() != text.encode():
            raise DataError(
                f"{self._folder}: holds answers of another model or other settings: give another folder or remove it"
            )
        if not about.exists():
            with atomic(about) as file:
                file.write(text)
        self._journal = Journal(self._folder / "artefacts.jsonl")
        for number, row in enumerate(self._journal.rows, 1):
            try:
                self._rows[row["id"]], self._asked[row["id"]] = dict(row["artefact"]), row.get("asked")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{self._journal.path}, line {number}: damaged; remove it to start anew") from error

    def answers(self, item: str, asked: str | None = None) -> bool:
        """Whether there is an answer to `item`, {"error": …} being none; raises `DataError` for one to other data."""
        if "error" in self._rows.get(item, {"error": ""}):
            return False
        if self._asked.get(item) != asked:
            raise DataError(
                f"{self._folder}: its answer to '{item}' is one to other data of that name: give another folder or "
                "remove it"
            )
        return True

    def add(self, item: str, artefact: Mapping[str, Any], asked: str | None = None) -> None:
        """Keep the answer to `item`."""
        self._asked[item] = asked
        if self._folder is None or self._journal is None:
            self._rows[item] = dict(artefact)
            return
        row = {k: self._on_disk(item, k, v) if isinstance(v, Audio) else v for k, v in artefact.items()}
        self._journal.append({"id": item, "asked": asked, "artefact": row})
        self._rows[item] = row

    def get(self, item: str) -> dict[str, Any]:
        """The answer to `item`, its audio read back."""
        return {k: self._loaded(v) if isinstance(v, dict) and "$audio" in v else v for k, v in self._rows[item].items()}

    def _on_disk(self, item: str, key: str, audio: Audio) -> dict[str, Any]:
        assert self._folder is not None
        if len(audio) == 0:
            return {"$audio": None, "channels": audio.channels, "sample_rate": audio.sample_rate}
        plain = re.sub(r"[^A-Za-z0-9._+-]", "_", item)[:100]
        if plain != item:  # another item may become the same name
            plain += f".{zlib.crc32(item.encode()):08x}"
        name = f"audio/{plain}.{key}.flac"
        write(self._folder / name, audio)
        return {"$audio": name}

    def _loaded(self, row: Mapping[str, Any]) -> Audio:
        import numpy as np

        assert self._folder is not None
        if row["$audio"] is None:
            return Audio(np.zeros((row["channels"], 0), np.float32), row["sample_rate"])
        return read(self._folder / row["$audio"])

    def __enter__(self) -> Artefacts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()
