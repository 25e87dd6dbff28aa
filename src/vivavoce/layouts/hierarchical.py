"""hierarchical: from coarse to fine, one group of levels after another.

    semantic s0 s1 s2, then voice[:2] a0 b0 a1 b1 a2 b2, then voice[2:] c0 d0 c1 d1 c2 d2

AudioLM (arXiv:2209.03143, section III: semantic, coarse and fine stages, each frame by frame), SPEAR-TTS, RALL-E
(pitch and durations first), HALL-E (levels of rising rate). Without an order every level is a group of its own, the
slowest first.
"""

from typing import Literal

from vivavoce.layouts.chain import ChainSpec
from vivavoce.layouts.program import Builder


class HierarchicalSpec(ChainSpec):
    """order: groups of levels, as slices. tags, learn_tags, close: as in a chain."""

    kind: Literal["hierarchical"] = "hierarchical"  # type: ignore[assignment]

    def default_order(self, builder: Builder) -> list[str]:
        """Streams as they come, their levels by rate."""
        return [f"{stream.name}[{level}]" for stream in builder.streams
                for level in sorted(range(stream.levels), key=stream.cells)]
