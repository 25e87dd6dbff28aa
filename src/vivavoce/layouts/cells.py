"""What a layout moves: cells (stream, level, index), the streams they belong to, and what is known beforehand.

A stream has frames and levels. `ratios` says how many cells each level has in a frame, so that a codec whose levels
run at different rates (SNAC: 1, 2 and 4) is one stream; `rate` is frames per second, None for what has only an order
(plain text).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivavoce.errors import RequestError

PADDING = -1  # in `stream`: no cell here
LITERAL = -2  # in `stream`: a literal of the layout; its id stands in `index`
BLANK = -2  # in `forced`: an empty lane of a stream that names no blank of its own
OPEN = 1 << 40  # a length that is not known yet: as far as the stream goes
END = -1  # right padding of a table of counts
FOREVER = OPEN + 1  # in the last column of a computed table: OPEN, and so on without end


@dataclass(frozen=True)
class StreamSpec:
    """What a layout must know of a stream.

    name: as in the recipe.
    levels: codebook levels (1 for text, units, vectors).
    rate: frames per second in Hz; None = order only.
    ratios: cells of each level in one frame (None: one each).
    given: its values come from outside (no loss, never filled).
    end: the token that ends it, an ordinary last cell counted in the lengths; None = it ends by length only.
    blank: the id that its lane shows where it has no cell; None = the model's business.
    """

    name: str
    levels: int = 1
    rate: float | None = None
    ratios: tuple[int, ...] | None = None
    given: bool = False
    end: int | None = None
    blank: int | None = None

    def __post_init__(self):
        if self.levels < 1:
            raise RequestError(f"stream '{self.name}' has {self.levels} levels: at least 1 is needed")
        if self.rate is not None and not self.rate > 0:
            raise RequestError(f"stream '{self.name}' has rate {self.rate} Hz: give a positive rate, or None")
        ratios = (1,) * self.levels if self.ratios is None else tuple(self.ratios)
        if len(ratios) != self.levels or min(ratios) < 1:
            raise RequestError(f"stream '{self.name}': ratios {list(ratios)} for {self.levels} levels: one (>= 1) each")
        object.__setattr__(self, "ratios", ratios)

    def cells(self, level: int) -> int:
        """Cells of `level` in one frame."""
        assert self.ratios is not None
        return self.ratios[level]


@dataclass(frozen=True)
class Given:
    """What a layout may depend on beyond the lengths. Each kind says which of these it reads.

    values: stream -> values [B, levels, T] (or [B, T]); dedup compares neighbours.
    counts: name -> cells per segment [B, R] int64 (words, chunks, turns), right-padded with `END`; `OPEN` = until the
        stream ends or its end token is seen.
    known: stream -> frames that are given although the stream is to be filled: a number of leading frames [B], or a
        mask [B, T] bool over frames. No loss on them; in streaming they are marked `given`.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    known: Mapping[str, Tensor] = field(default_factory=dict)


def parse_slice(text: str, streams: Sequence[StreamSpec]) -> tuple[StreamSpec, list[int]]:
    """`voice`, `voice[0]`, `voice[1:]`, `voice[:4]` -> the stream and its levels."""
    match = re.fullmatch(r"([^\[\]]+?)(?:\[(-?\d*)(:?)(-?\d*)\])?", text.strip())
    names = {stream.name: stream for stream in streams}
    if match is None or match[1] not in names:
        raise RequestError(f"'{text}' names no stream: expected one of {sorted(names)}, or a slice such as 'voice[1:]'")
    stream = names[match[1]]
    levels = list(range(stream.levels))
    if match[2] is None:
        return stream, levels
    if match[3]:
        levels = levels[slice(int(match[2]) if match[2] else None, int(match[4]) if match[4] else None)]
    elif match[2] and -stream.levels <= int(match[2]) < stream.levels:
        levels = [levels[int(match[2])]]
    else:
        levels = []
    if not levels:
        raise RequestError(f"'{text}' has no level: stream '{stream.name}' has {stream.levels}")
    return stream, levels


def level_lengths(stream: StreamSpec, lengths: Tensor) -> Tensor:
    """Frames [B], or cells of each level [B, levels] -> cells of each level [B, levels] int64."""
    ratios = torch.tensor(stream.ratios, dtype=torch.int64, device=lengths.device)
    lengths = lengths.to(torch.int64)
    if lengths.dim() == 1:
        lengths = (lengths[:, None] * ratios).clamp(max=OPEN)
    if lengths.dim() != 2 or lengths.shape[1] != stream.levels:
        raise RequestError(
            f"lengths of stream '{stream.name}' have shape {tuple(lengths.shape)}: "
            f"give [B] frames or [B, {stream.levels}] cells"
        )
    if lengths.numel() and int(lengths.min()) < 0:
        raise RequestError(f"a length of stream '{stream.name}' is negative")
    return lengths
