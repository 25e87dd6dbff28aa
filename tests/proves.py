"""`@proves("moshi", "weights")` marks what a test proves about a system of the atlas.

`level` is one of recipe, mechanism, weights, result; `check` names which of the level's required checks the test is
(see `vivavoce.atlas.levels`). Where an id stands in two tables, write `codec/whisper`.
"""

import pytest

LEVELS = ("recipe", "mechanism", "weights", "result")


def proves(system: str, level: str, check: str | None = None):
    """Mark a test as evidence that `system` holds at `level`."""
    if level not in LEVELS:
        raise ValueError(f"proves({system!r}, {level!r}): level is one of {LEVELS}")
    return pytest.mark.proves(system=system, level=level, check=check)
