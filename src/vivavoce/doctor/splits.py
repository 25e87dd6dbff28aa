"""What must not be on both sides of a split: the same recording, the same speaker."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vivavoce.doctor.findings import Finding, fault, look

FIELDS = ("split", "subset", "partition")  # of a row, where it says to which part it belongs
APART = ("test", "dev", "val", "eval", "held")  # what parts that are not learned from are called


@dataclass(frozen=True)
class Item:
    """A clip or row: its id, on which side it is (None: it does not say), who speaks, and what tells its sound or its
    tokens from others (0: unknown)."""

    id: str
    apart: bool | None
    speakers: frozenset[str]
    digest: int
    file: str = ""


def is_apart(extra: Mapping[str, Any], name: str = "") -> bool | None:
    """Whether a row is held out of training, by its own fields, else by the name of its manifest; None: unknown."""
    said = next((str(extra[field]) for field in FIELDS if extra.get(field)), PurePath(name).stem).lower()
    if any(said.startswith(word) or f"-{word}" in said or f"_{word}" in said for word in APART):
        return True
    return False if "train" in said else None


def speakers_of(*names: str | None) -> frozenset[str]:
    """Speakers of a clip, of which several are written `a+b`."""
    return frozenset(part for name in names if name for part in name.split("+"))


def leaks(items: Collection[Item], what: str) -> Iterator[Finding]:
    """Recordings and speakers that are learned from and held out; `what`: clips or rows."""
    sides = {apart: [item for item in items if item.apart is apart] for apart in (False, True)}
    learned = {item.digest: item.id for item in sides[False] if item.digest}
    files = {item.file: item.id for item in sides[False] if item.file}
    both = [
        f"{item.id} = {other}"
        for item in sides[True]
        if (other := learned.get(item.digest) or files.get(item.file)) is not None
    ]
    if both:
        yield fault(
            f"{what} of the training part that are in the held-out part too: every figure on it is too good",
            "take them out of one of the two parts",
            both,
        )
    train, held = (frozenset(s for item in sides[apart] for s in item.speakers) for apart in (False, True))
    shared = sorted(train & held)
    if shared and len(shared) < len(held):
        yield fault(
            f"speakers of the training part that are in the held-out part too ({len(shared)} of its {len(held)})",
            "split by speaker: move all of their clips to one side",
            shared,
        )
    elif shared:
        yield look(
            f"all {len(held)} speakers of the held-out part are in the training part too: the split is not by speaker",
            "fine for one voice; else figures say nothing about voices never heard: split by speaker",
            shared,
        )


def copies(items: Iterable[Item], what: str) -> Iterator[Finding]:
    """Items of one side with the very same sound or tokens."""
    seen: dict[tuple[int, bool | None], str] = {}
    twice = []
    for item in items:
        if item.digest and (item.digest, item.apart) in seen:
            twice.append(f"{item.id} = {seen[item.digest, item.apart]}")
        seen.setdefault((item.digest, item.apart), item.id)
    if twice:
        yield look(f"{what} that are copies of others, sample for sample", "leave the copies out", twice)
