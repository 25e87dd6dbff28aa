"""One utterance as tokens, and its form as a row of a Parquet file.

A stream has for every channel its levels: codes uint16 or uint32, level by level (levels of different rate differ in
length), or frames float16 [frames, width]. What is constant over a store (rates, sizes, fingerprints) stands once, in
the files' metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vivavoce.data.clips import Clip, Word
from vivavoce.errors import DataError, need

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1


@dataclass(frozen=True)
class StreamSpec:
    """What a stream of a store is: `rates` in Hz, one a level; `size` entries of the largest codebook, or `width`
    numbers a frame for continuous streams (then `size` is 0). `fingerprint` identifies the tokenizer's weights."""

    tokenizer: str
    fingerprint: str
    rates: tuple[float, ...]
    sample_rate: int
    size: int = 0
    width: int = 0

    @property
    def levels(self) -> int:
        return len(self.rates)

    @property
    def ratios(self) -> tuple[int, ...]:
        """Codes of each level in a frame: the rates in whole numbers, as small as they can be (SNAC: 1, 2, 4)."""
        rates = [Fraction(rate).limit_denominator(10_000) for rate in self.rates]
        whole = math.lcm(*(rate.denominator for rate in rates))
        counts = [int(rate * whole) for rate in rates]
        return tuple(count // math.gcd(*counts) for count in counts)

    @property
    def dtype(self) -> np.dtype:
        """The type at rest."""
        return np.dtype(np.float16 if self.width else np.uint16 if self.size <= 1 << 16 else np.uint32)


@dataclass(frozen=True)
class TokenRow:
    """One utterance. `streams`: name -> for every channel codes int [levels, frames], a list of int [frames of that
    level] where levels differ in rate, or float16 [frames, width]. `text`, `speaker` and `alignment` (words where they
    are timed, else turns) are by channel of the recording."""

    id: str
    duration: float
    license: str
    source: str
    streams: Mapping[str, Sequence[Any]]
    language: str | None = None
    text: tuple[str | None, ...] = (None,)
    speaker: tuple[str | None, ...] = (None,)
    alignment: tuple[tuple[Word, ...], ...] = ((),)
    extra: Mapping[str, Any] = field(default_factory=dict)


def row_of(clip: Clip, streams: Mapping[str, Sequence[Any]]) -> TokenRow:
    """What a clip says of itself, by channel, with its tokens."""
    channels: list[list] = [[s for s in clip.segments if s.channel == c] for c in range(clip.channels)]
    texts = tuple(" ".join(s.text for s in turns if s.text) or None for turns in channels)
    speakers = tuple("+".join(dict.fromkeys(s.speaker for s in turns if s.speaker)) or None for turns in channels)
    if clip.channels == 1:
        texts, speakers = (clip.text,), (clip.speaker or speakers[0],)
    alignment = []
    for turns in channels:
        words = [word for turn in turns for word in turn.words]
        spoken = [Word(turn.text, turn.start, turn.end) for turn in turns if turn.text]
        alignment.append(tuple(sorted(words or spoken, key=lambda word: word.start)))
    return TokenRow(
        *(clip.id, clip.duration, clip.license, clip.source, streams, clip.language, texts, speakers),
        alignment=tuple(alignment),
        extra=dict(clip.extra),
    )


def arrow_schema(specs: Mapping[str, StreamSpec]) -> pa.Schema:
    """The columns of a store; the specs are in its metadata."""
    pa = need("pyarrow", "train", "token stores")
    word = pa.struct([("text", pa.string()), ("start", pa.float32()), ("end", pa.float32())])
    fields = [
        *(("id", pa.string()), ("duration", pa.float64()), ("license", pa.string()), ("source", pa.string())),
        *(("language", pa.string()), ("text", pa.list_(pa.string())), ("speaker", pa.list_(pa.string()))),
        *(("alignment", pa.list_(pa.list_(word))), ("extra", pa.string())),
        ("frames", pa.struct([(name, pa.int32()) for name in specs])),
    ]
    for name, spec in specs.items():
        value = pa.from_numpy_dtype(spec.dtype)
        # channels of frames, or channels of levels of codes
        inner = pa.list_(value, spec.width) if spec.width else pa.list_(value)
        fields.append((f"stream.{name}", pa.list_(pa.list_(inner))))
    about = {"format": FORMAT, "streams": {name: asdict(spec) for name, spec in specs.items()}}
    return pa.schema(fields, metadata={"vivavoce": json.dumps(about)})


def read_specs(schema: pa.Schema, where: str) -> dict[str, StreamSpec]:
    """The specs in a file's metadata; raises `DataError` where it is no store's file or of a later format."""
    try:
        about = json.loads((schema.metadata or {})[b"vivavoce"])
        if about["format"] != FORMAT:
            raise DataError(f"{where}: format {about['format']} of a token store; this version reads {FORMAT}")
        return {name: StreamSpec(**{**s, "rates": tuple(s["rates"])}) for name, s in about["streams"].items()}
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{where}: a Parquet file, but not of a token store") from error


def to_arrow(rows: Sequence[TokenRow], specs: Mapping[str, StreamSpec]) -> pa.Table:
    """Rows as a table; raises `DataError` for a stream that is missing or does not fit its spec."""
    import pyarrow as pa

    schema = arrow_schema(specs)
    columns: dict[str, Any] = {name: [] for name in schema.names if not name.startswith("stream.")}
    streams: dict[str, list[list[Any]]] = {name: [] for name in specs}
    for row in rows:
        if set(row.streams) != set(specs):
            raise DataError(f"utterance '{row.id}': streams {sorted(row.streams)} where {sorted(specs)} are kept")
        for name, spec in specs.items():
            streams[name].append([_checked(row.id, name, spec, channel) for channel in row.streams[name]])
        for name in ("id", "duration", "license", "source", "language", "text", "speaker"):
            columns[name].append(getattr(row, name))
        columns["alignment"].append([[asdict(word) for word in words] for words in row.alignment])
        columns["extra"].append(json.dumps(dict(row.extra), ensure_ascii=False))
        first = {name: streams[name][-1][0] for name in specs}
        frames = {n: len(c) if specs[n].width else len(c[0]) // specs[n].ratios[0] for n, c in first.items()}
        columns["frames"].append(frames)
    for name, spec in specs.items():
        columns[f"stream.{name}"] = _nested(streams[name], spec)
    return pa.table(columns, schema=schema)


def _nested(rows: list[list[Any]], spec: StreamSpec) -> pa.Array:
    """Rows of channels as an array of nested lists, made of the values and offsets: nothing becomes a Python number."""
    import pyarrow as pa

    def offsets(counts: list[int]) -> pa.Array:
        return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())

    channels = [channel for row in rows for channel in row]
    if spec.width:
        values = np.concatenate([c.ravel() for c in channels]) if channels else np.zeros(0, np.float16)
        inner = pa.FixedSizeListArray.from_arrays(pa.array(values), spec.width)
    else:
        levels = [level for channel in channels for level in channel]
        values = np.concatenate(levels) if levels else np.zeros(0, spec.dtype)
        inner = pa.ListArray.from_arrays(offsets([len(level) for level in levels]), pa.array(values))
    whole = pa.ListArray.from_arrays(offsets([len(channel) for channel in channels]), inner)
    return pa.ListArray.from_arrays(offsets([len(row) for row in rows]), whole)


def _checked(identity: str, name: str, spec: StreamSpec, channel: Any) -> Any:
    """One channel of a stream as it is kept: codes, an array a level, or frames [frames, width]."""
    where = f"utterance '{identity}', stream '{name}'"
    if spec.width:
        frames = np.asarray(channel, np.float32)
        if frames.ndim != 2 or frames.shape[1] != spec.width or not np.isfinite(frames).all():
            raise DataError(f"{where}: {list(frames.shape)} found, finite frames [frames, {spec.width}] expected")
        return frames.astype(np.float16)
    levels = [np.asarray(level) for level in channel]
    if len(levels) != spec.levels or any(level.ndim != 1 for level in levels):
        raise DataError(f"{where}: {len(levels)} levels found, {spec.levels} expected")
    count = len(levels[0]) // spec.ratios[0]
    if [len(level) for level in levels] != [count * ratio for ratio in spec.ratios]:
        raise DataError(f"{where}: levels of {[len(level) for level in levels]} codes are no frames of {spec.ratios}")
    for number, level in enumerate(levels):
        if level.size and not (level.min() >= 0 and level.max() < spec.size):
            found = f"codes from {level.min()} to {level.max()}"
            raise DataError(f"{where}, level {number}: {found}; the codebook has {spec.size} entries")
    return [level.astype(spec.dtype) for level in levels]


def from_arrow(table: pa.Table, index: int, specs: Mapping[str, StreamSpec]) -> TokenRow:
    """Row `index` of a table."""
    record = {name: table.column(name)[index].as_py() for name in table.column_names if not name.startswith("stream.")}
    streams = {name: _channels(table.column(f"stream.{name}"), index, spec) for name, spec in specs.items()}
    return TokenRow(
        *(record["id"], record["duration"], record["license"], record["source"], streams, record["language"]),
        text=tuple(record["text"]),
        speaker=tuple(record["speaker"]),
        alignment=tuple(tuple(Word(**word) for word in words) for words in record["alignment"]),
        extra=json.loads(record["extra"]),
    )


def _channels(column: pa.ChunkedArray, index: int, spec: StreamSpec) -> list[Any]:
    """The channels of one row, without a detour through Python lists."""
    channels = column[index].values
    found: list[Any] = []
    for channel in range(len(channels)):
        levels = channels[channel].values
        flat = levels.flatten()
        if spec.width:
            found.append(np.asarray(flat).reshape(-1, spec.width).copy())
            continue
        lengths = np.asarray(levels.value_lengths())
        codes = np.asarray(flat).astype(np.int64)
        if len(set(spec.ratios)) == 1:
            found.append(codes.reshape(len(lengths), -1))
        else:
            found.append(np.split(codes, np.cumsum(lengths)[:-1]))
    return found
