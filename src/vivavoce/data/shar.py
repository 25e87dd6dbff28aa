"""lhotse Shar in: `cuts.000000.jsonl.gz` beside `recording.000000.tar`, the audio of each cut in their order.

The archives are not unpacked and not read through: a clip knows where in its archive its file lies, so that clips can
be read in any order, by any process.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivavoce.data.corpora import Corpus
from vivavoce.data.cuts import clip_of
from vivavoce.errors import DataError, need

CUTS = re.compile(r"cuts\.(\d+)\.jsonl(\.gz)?")


def is_shar(place: Path) -> bool:
    """Whether a folder has shards of cuts beside archives of recordings."""
    return any(CUTS.fullmatch(path.name) for path in place.glob("cuts.*")) and any(place.glob("recording.*.tar"))


def read_shar(place: str | os.PathLike) -> Corpus:
    """A Shar folder as clips. What of an archive is missing or cut short, and cuts without a recording, are counted as
    skipped. Raises `DataError` for cuts that lhotse cannot read, and an archive that is not theirs."""
    need("lhotse", "train", "reading lhotse Shar")
    folder, corpus = Path(place), Corpus()
    for path in sorted(path for path in folder.iterdir() if CUTS.fullmatch(path.name)):
        number = CUTS.fullmatch(path.name)[1]  # type: ignore[index]
        archive = folder / f"recording.{number}.tar"
        found = _recordings(archive)
        for cut in _cuts(path):
            name, inside, why = next(found, ("", None, f"{archive}: it ends before this cut"))
            if inside is None:
                corpus.skipped.append((cut.id, why))
                continue
            if name != cut.id:
                raise DataError(f"{archive}: it has '{name}' where {path} has the cut '{cut.id}': not of one shard")
            corpus.clips.append(clip_of(cut, archive.name, None, root=str(folder), inside=inside))
    return corpus


def _cuts(path: Path) -> Iterator[Any]:
    from lhotse import CutSet

    try:
        yield from CutSet.from_file(path)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError, EOFError) as error:
        raise DataError(f"{path}: not cuts that lhotse can read: {error!r}") from error


def _recordings(archive: Path) -> Iterator[tuple[str, tuple[int, int] | None, str]]:
    """(id of the cut, first byte and size of its audio) of each pair of files in an archive, or None and why not."""
    if not archive.is_file():
        while True:
            yield "", None, f"{archive}: no such file"
    size = archive.stat().st_size
    try:
        with tarfile.open(archive) as members:
            audio: tarfile.TarInfo | None = None
            for member in members:
                stem, _, ending = member.name.rpartition(".")
                if ending == "json" and audio is not None and audio.name.rpartition(".")[0] == stem:
                    if audio.offset_data + audio.size > size:
                        break
                    yield stem, (audio.offset_data, audio.size), ""
                    audio = None
                elif ending in ("nodata", "nometa"):  # lhotse's mark of a cut without a recording
                    if ending == "nometa":
                        yield stem, None, f"{archive}: no recording"
                else:
                    audio = member
    except (tarfile.TarError, OSError, EOFError) as error:
        while True:
            yield "", None, f"{archive}: damaged: {error}"
