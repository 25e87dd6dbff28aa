"""Token stores: a folder of Parquet shards, an utterance a row, written so that a kill loses nothing that was finished.

    STORE/store.json            the streams and their fingerprints
    STORE/shard-00000.parquet   `rows_per_shard` rows each; the last one may be shorter
    STORE/pending-00007.parquet finished rows that wait for their shard; a reader takes no notice of them
    STORE/index/                what makes it open at once (see `store_index`)

Every file appears under its name only when it is complete. Pending files become a shard when enough rows are there.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data import tokens
from vivavoce.data.files import atomic, made_folder, sweep
from vivavoce.data.store_index import FOLDER as INDEX
from vivavoce.data.store_index import StoreIndex, open_index
from vivavoce.data.tokens import FORMAT, StreamSpec, TokenRow
from vivavoce.errors import DataError, need
from vivavoce.tokenizers.fingerprint import fingerprint

_ROWS_PER_GROUP = 32  # what a reader decodes to reach one row
_OPEN = 32  # shards that a reader has open at once


def _parquet() -> Any:
    return need("pyarrow.parquet", "train", "token stores")


class TokenWriter:
    """Append utterances to a store, new or begun. `done` holds the ids that are in it.

    Raises `DataError` where a store with other streams or fingerprints is in the folder.
    """

    def __init__(self, folder: str | os.PathLike, specs: Mapping[str, StreamSpec], rows_per_shard: int = 1000):
        self._parquet = _parquet()
        self.folder, self.specs, self.rows_per_shard = Path(folder), dict(specs), rows_per_shard
        made_folder(self.folder)
        about = self.folder / "store.json"
        if about.exists():
            _match(_specs(self.folder), self.specs, f"{self.folder} was begun with", "now it is")
        else:
            with atomic(about) as file:
                streams = {name: asdict(spec) for name, spec in self.specs.items()}
                json.dump({"format": FORMAT, "streams": streams}, file, indent=1)
        sweep(self.folder)
        self.done: set[str] = set()
        for path in self.shards():
            self.done |= set(self._ids(path))
        self._waiting = 0
        for path in self.pending():
            ids = self._ids(path)
            if self.done & set(ids):  # a kill came after its shard was complete and before it was removed
                path.unlink()
            else:
                self.done |= set(ids)
                self._waiting += len(ids)

    def shards(self) -> list[Path]:
        """The complete shards in order."""
        return sorted(self.folder.glob("shard-*.parquet"))

    def pending(self) -> list[Path]:
        """The finished rows that are in no shard yet, in order."""
        return sorted(self.folder.glob("pending-*.parquet"))

    def add(self, rows: Sequence[TokenRow]) -> None:
        """Put rows into the store; they are on disk when this returns. Raises `DataError` for an id that is there."""
        rows = list(rows)
        for row in rows:
            if row.id in self.done:
                raise DataError(f"{self.folder}: the utterance '{row.id}' is in the store already")
            self.done.add(row.id)
        while rows:
            # Pending files end where shards end, so that a shard is always made of whole files.
            some, rows = rows[: self.rows_per_shard - self._waiting], rows[self.rows_per_shard - self._waiting :]
            number = int(self.pending()[-1].stem.partition("-")[2]) + 1 if self._waiting else 0
            self._write(self.folder / f"pending-{number:05d}.parquet", tokens.to_arrow(some, self.specs))
            self._waiting += len(some)
            if self._waiting >= self.rows_per_shard:
                self._join()

    def finish(self) -> None:
        """All utterances are in: what is pending becomes the last shard."""
        if self._waiting:
            self._join()
        _index(self.folder, self.specs)

    def _join(self) -> None:
        import pyarrow as pa

        parts = self.pending()
        table = pa.concat_tables([self._parquet.read_table(path) for path in parts])
        self._write(self.folder / f"shard-{len(self.shards()):05d}.parquet", table)
        for path in parts:
            path.unlink()
        self._waiting = 0

    def _write(self, path: Path, table: Any) -> None:
        with atomic(path, "wb") as file:
            schema = tokens.arrow_schema(self.specs)
            with self._parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                writer.write_table(table, row_group_size=_ROWS_PER_GROUP)

    def _ids(self, path: Path) -> list[str]:
        return _read_table(path, ["id"]).column("id").to_pylist()


class TokenStore:
    """A store to read: `len`, `store[index]`, iteration, and `lengths` for batching; picklable for data workers.

    `expect` maps streams to what the model was trained with, a fingerprint or the tokenizer itself: the store is
    refused (`DataError`, both fingerprints printed) unless it has these streams, made by the same. Without `expect`
    anything is read.
    """

    def __init__(self, folder: str | os.PathLike, expect: Mapping[str, Any] | None = None, cache: int = 64):
        self.folder = Path(folder)
        self.specs = _specs(self.folder)
        for name, wanted in (expect or {}).items():
            self._check(name, wanted)
        _parquet()
        self._index = _index(self.folder, self.specs)
        self._count = self._index.rows
        if not self._count:
            waiting = len(list(self.folder.glob("pending-*.parquet")))
            hint = ": it was never finished, go on with the same 'vivavoce tokenize'" if waiting else ""
            raise DataError(f"{self.folder}: the store holds no finished shard{hint}")
        self._cache: OrderedDict[tuple[int, int], Any] = OrderedDict()  # groups of rows by shard and number in it
        self._cached = cache
        self._files: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> TokenRow:
        if not -self._count <= index < self._count:
            raise IndexError(f"row {index} of a store of {self._count}")
        index %= self._count
        shard, within = self._index.find(index)
        file = self._file(shard)
        group, within = divmod(within, file.metadata.row_group(0).num_rows)
        if (shard, group) not in self._cache:
            self._cache[shard, group] = _decode(file, group, Path(self._path(shard)))
            while len(self._cache) > self._cached:
                self._cache.popitem(last=False)
        self._cache.move_to_end((shard, group))
        return tokens.from_arrow(self._cache[shard, group], within, self.specs)

    def _path(self, shard: int) -> Path:
        return self.folder / self._index.names[shard]

    def _file(self, shard: int) -> Any:
        """An open shard; few are open at once."""
        if shard not in self._files:
            path, expected = self._path(shard), int(np.diff(self._index.starts)[shard])
            file = _open(path)
            if file.metadata.num_rows != expected:
                raise DataError(
                    f"{path}: {file.metadata.num_rows} rows; the store's index says {expected}: remove the folder "
                    f"'{INDEX}' of the store, it is made anew"
                )
            self._files[shard] = file
            while len(self._files) > _OPEN:
                self._files.popitem(last=False)
        self._files.move_to_end(shard)
        return self._files[shard]

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(self._count))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "_files": OrderedDict(), "_index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = _index(self.folder, self.specs)  # read where it lies: it may be large

    def lengths(self, stream: str | None = None) -> np.ndarray:
        """Frames of every row, int32 [rows], of `stream` (the first by default), without reading any tokens: a view of
        the store's index, which lies in a file."""
        name = stream or next(iter(self.specs))
        if name not in self.specs:
            raise DataError(f"{self.folder}: there is no stream '{name}', but {', '.join(self.specs)}")
        return self._index.frames[:, list(self.specs).index(name)]

    def column(self, name: str) -> np.ndarray:
        """One column of all rows (`id`, `duration`, `language`, `source`, `license`, …) as a numpy array."""
        paths = [self._path(shard) for shard in range(len(self._index.names))]
        return np.concatenate([_read_table(path, [name]).column(name).to_numpy() for path in paths])

    @property
    def hours(self) -> float:
        """Of audio."""
        return float(self.column("duration").sum()) / 3600

    def _check(self, name: str, model: Any) -> None:
        if name not in self.specs:
            raise DataError(f"{self.folder}: the model needs a stream '{name}'; there are {', '.join(self.specs)}")
        spec = self.specs[name]
        wanted = model if isinstance(model, str) else fingerprint(model)
        if spec.fingerprint != wanted:
            raise DataError(
                f"{self.folder}: the stream '{name}' was made by another tokenizer: the store's fingerprint is "
                f"{spec.fingerprint} ({spec.tokenizer}), the model's is {wanted}; tokenize the corpus anew"
            )
        levels = len(getattr(model, "codebook_sizes", spec.rates))
        if levels > spec.levels:
            raise DataError(
                f"{self.folder}: the stream '{name}' has {spec.levels} levels and the model needs {levels}: "
                "tokenize the corpus anew with more codebooks"
            )


def _specs(folder: Path) -> dict[str, StreamSpec]:
    path = folder / "store.json"
    if not path.is_file():
        raise DataError(f"{folder}: not a token store (it has no store.json); 'vivavoce tokenize' makes one")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise DataError(f"{path}: format {about['format']} of a token store; this version reads {FORMAT}")
        return {name: StreamSpec(**{**s, "rates": tuple(s["rates"])}) for name, s in about["streams"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged: {error!r}") from error


def _match(found: Mapping[str, StreamSpec], wanted: Mapping[str, StreamSpec], before: str, after: str) -> None:
    """Raise `DataError` that names the first difference between two sets of streams."""
    if set(found) != set(wanted):
        raise DataError(f"{before} the streams {', '.join(found)}; {after} {', '.join(wanted)}")
    for name, spec in found.items():
        for what, theirs in asdict(spec).items():
            ours = asdict(wanted[name])[what]
            if what != "tokenizer" and theirs != ours:
                raise DataError(f"{before} the {what} {theirs} for the stream '{name}'; {after} {ours}")


def _open(path: Path) -> Any:
    import pyarrow as pa

    try:
        return _parquet().ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _index(folder: Path, specs: Mapping[str, StreamSpec]) -> StoreIndex:
    return open_index(folder, list(specs), lambda path: _frames(path, specs))


def _frames(path: Path, specs: Mapping[str, StreamSpec]) -> np.ndarray:
    """Frames of every row of a shard, int32 [rows, streams]; raises `DataError` where it is not of the store."""
    file = _open(path)
    _match(tokens.read_specs(file.schema_arrow, str(path)), specs, f"{path} holds", "store.json says")
    frames = _read_table(path, ["frames"]).column("frames").combine_chunks()
    return np.stack([np.asarray(frames.field(name), np.int32) for name in specs], axis=1)


def _decode(file: Any, group: int, path: Path) -> Any:
    import pyarrow as pa

    try:
        return file.read_row_group(group, use_threads=False).combine_chunks()  # so little that threads cost more
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged in row group {group}: {error}") from error


def _read_table(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa

    try:
        return _open(path).read(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
