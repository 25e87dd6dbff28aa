"""What it takes to tokenize a corpus, from a sample of it: hours of work, gigabytes, machines."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data.clips import Clip
from vivavoce.data.corpora import check_ids
from vivavoce.data.store import TokenWriter
from vivavoce.data.tokenize import batches, encode, spec_of
from vivavoce.errors import DataError, need


@dataclass(frozen=True)
class Estimate:
    """A sample of `clips` with `hours` of audio took `seconds` and `size` bytes of store; `skipped` could not be read.
    `corpus`: hours of the whole."""

    clips: int
    hours: float
    seconds: float
    size: int
    skipped: tuple[tuple[str, str], ...]
    corpus: float

    @property
    def rate(self) -> float:
        """Hours of audio a second, of one process."""
        return self.hours / self.seconds

    def work(self, hours: float) -> float:
        """Hours of one process for so many hours of audio."""
        return hours / self.rate / 3600

    def disk(self, hours: float) -> float:
        """Bytes of store for so many hours of audio."""
        return self.size / self.hours * hours

    def processes(self, hours: float, days: float) -> int:
        """How many processes like this one do so many hours of audio in `days`."""
        return math.ceil(self.work(hours) / (24 * days))


def estimate(
    clips: Sequence[Clip], tokenizers: Mapping[str, Any], batch_seconds: float = 60.0, seconds: float = 30.0
) -> Estimate:
    """Tokenize clips drawn evenly from all of the corpus, in batches as `tokenize` makes them, for about `seconds`.

    The first batch warms up and is not counted where there are several. Raises `DataError` where none of them can be
    read.
    """
    check_ids(clips)
    specs = {name: spec_of(tokenizer, name) for name, tokenizer in tokenizers.items()}
    drawn = list(batches([clips[index] for index in _order(len(clips))], batch_seconds))
    skipped: list[tuple[str, str]] = []
    counted, hours, spent, begin = 0, 0.0, 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        writer = TokenWriter(Path(place, "store"), specs)
        for number, batch in enumerate(drawn):
            start = time.monotonic()
            done = encode(batch, tokenizers)
            if done.rows:
                writer.add(done.rows)
            skipped += done.skipped
            counted += len(done.rows)
            if number or len(drawn) == 1:
                spent += time.monotonic() - start
                hours += sum(row.duration for row in done.rows) / 3600
            if hours and time.monotonic() - begin > seconds:
                break
        if not hours:
            raise DataError(f"none of the {counted + len(skipped)} clips of the sample tells how long it takes")
        writer.finish()
        size = sum(path.stat().st_size - _frame(path) for path in Path(place).rglob("*.parquet"))
        stored = sum(row.duration for batch in drawn for row in batch if row.id in writer.done) / 3600
    whole = sum(clip.duration for clip in clips) / 3600
    return Estimate(counted, hours, spent, round(size * hours / stored), tuple(skipped), whole)


def _frame(path: Path) -> int:
    """Bytes of a shard that tell of the store and not of its rows: of a sample they would be most."""
    parquet, buffer = need("pyarrow.parquet", "train", "token stores"), BytesIO()
    schema = parquet.read_schema(path)
    parquet.write_table(schema.empty_table(), buffer, compression="zstd")
    return len(buffer.getvalue())


def _order(count: int) -> list[int]:
    """All of 0 … count - 1, such that the first few are spread evenly over them (steps of the golden section)."""
    if not count:
        return []
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, count) > 1:
        step += 1
    return [int(at) for at in np.arange(count) * step % count]
