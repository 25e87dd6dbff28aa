"""A long step of a codec's stack, part by part in tiles that stay in the processor's cache: as if in one."""

import math
from collections.abc import Callable
from fractions import Fraction

from torch import Tensor

from vivavoce.nn.side_inputs import SideInputs
from vivavoce.nn.streaming import Chain, Pointwise, State, join_rows

Step = Callable[[Tensor, State, Tensor | None], tuple[Tensor, State]]

# Up to this rate in Hz, a part is called once for so many tiles: the lower the rate, the less there is to do for what a
# call costs, and the larger are the weights that it reads.
TILES = ((150.0, 48), (1500.0, 6), (math.inf, 1))


def in_tiles(
    chain: Chain, rate: float, x: Tensor, state: State, lengths: Tensor | None, tile: int, consume: bool = False
) -> tuple[Tensor, State]:
    """A step over x [B, T, D] at `rate` Hz: the parts at high rates walk in tiles of `tile` inputs, those at low rates,
    with large weights, in many tiles at once. consume: the old state may be overwritten."""
    parts = sections(chain, rate)

    def through(level: int) -> Step:
        """A step of the sections up to `level`, those of shorter pieces inside those of longer ones."""
        own, _ = parts[level]

        def here(piece: Tensor, state: State, inside: Tensor | None) -> tuple[Tensor, State]:
            return chain.step_parts(piece, state, inside, own.start, own.stop, consume)

        def nested(piece: Tensor, state: State, inside: Tensor | None) -> tuple[Tensor, State]:
            inner, tiles = parts[level - 1]
            if inner.start < own.start:  # an encoder: the rates fall
                y, state = _in_pieces(through(level - 1), piece, state, inside, tile * tiles)
                return here(y, state, state.emitted)
            y, state = here(piece, state, inside)
            faster = 1 / math.prod((part.hop for part in chain.parts[: inner.start]), start=Fraction(1))
            return _in_pieces(through(level - 1), y, state, state.emitted, math.ceil(tile * tiles * faster))

        return nested if level else here

    return _in_pieces(through(len(parts) - 1), x, state, lengths, tile * parts[-1][1])


def sections(chain: Chain, rate: float) -> list[tuple[range, int]]:
    """Neighbouring parts that are called for the same number of tiles, and that number; the fewest tiles first.

    A part's rate is the lower one of what it hears and what it gives, but of stages that all hear the signal itself
    what they hear. An activation goes with the part behind it.
    """
    hop = Fraction(1)
    found: dict[int, range] = {}
    first = 0
    for number, part in enumerate(chain):
        own = rate / (hop if isinstance(part, SideInputs) else max(hop, hop * part.hop))
        hop *= part.hop
        if not isinstance(part, Pointwise) or number + 1 == len(chain.parts):
            tiles = next(tiles for top, tiles in TILES if own <= top)
            found[tiles] = range(found[tiles].start if tiles in found else first, number + 1)
            first = number + 1
    return [(found[tiles], tiles) for tiles in sorted(found)]


def _in_pieces(step: Step, x: Tensor, state: State, lengths: Tensor | None, size: int) -> tuple[Tensor, State]:
    """`step` over x in pieces of at most `size` frames, as if in one."""
    if x.shape[1] <= size:
        return step(x, state, lengths)
    pieces = []
    for start in range(0, x.shape[1], size):
        piece = x[:, start : start + size]
        inside = None if lengths is None else (lengths - start).clamp(0, piece.shape[1])
        y, state = step(piece, state, inside)
        pieces.append((y, state.emitted))
    joined, emitted = join_rows(pieces)
    return joined, State({**state, "emitted": emitted})
