"""Where the cells of a layout stand, as a network numbers them: tables and heads belong to slots, not to lanes.

A *slot* of a stream is a lane with the level that stands there: a level that runs faster than the columns stands in
several lanes and has as many slots; levels flattened into one lane are as many slots. Layouts of one network agree on
the slots of a stream and differ in their lanes: so the tasks of a stage share its tables and heads.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.layouts import Layout

NOWHERE = -1  # the lane of a slot that a layout leaves out
_ABSENT = -3  # a level that no cell has: slots that a layout leaves out hold nothing


@dataclass(frozen=True)
class Slot:
    """A lane of the grid (`NOWHERE`: none) with one level of one stream in it."""

    lane: int
    level: int


Key = tuple[int, int]  # a slot of a stream, whatever its lane: the level, and which of its lanes it is (0, 1, …)


def placed(layout: Layout, name: str) -> dict[Key, int]:
    """The slots of a stream in a layout with their lanes, in the order of the lanes."""
    found: dict[Key, int] = {}
    for lane, cells in enumerate(layout.lane_cells):
        for stream, level in cells:
            if stream == name:
                found[level, sum(key[0] == level for key in found)] = lane
    return found


def common_slots(layouts: Iterable[Layout]) -> dict[str, list[Key]]:
    """The slots of every stream in all layouts of a network: those of the first layout, then what others add.

    Raises `RecipeError` where layouts have different streams, or put a level into different numbers of lanes.
    """
    first, *others = layouts
    found = {spec.name: list(placed(first, spec.name)) for spec in first.streams}
    for layout in others:
        if layout.streams != first.streams:
            raise RecipeError("layout: all tasks of a stage have the same streams")
        for name, keys in found.items():
            mine = list(placed(layout, name))
            for level in sorted({level for level, _ in mine}):
                here, there = (sum(key[0] == level for key in each) for each in (mine, keys))
                if there and here != there:
                    raise RecipeError(
                        f"layout: '{name}[{level}]' stands in {here} lanes here and in {there} elsewhere in the stage: "
                        "its tables and heads, one a lane, cannot be the same"
                    )
            keys += [key for key in mine if key not in keys]
    return found


class Slots:
    """The slots of one `layout`: `slots[stream]`, in the network's order, with the lanes that they have here."""

    def __init__(self, layout: Layout, order: dict[str, list[Key]]):
        self.layout = layout
        self.slots: dict[str, list[Slot]] = {}
        self._shows: dict[str, list[bool]] = {}
        blanks = {spec.name for spec in layout.streams if spec.blank is not None}
        # The blank of a lane is that of the first stream in it that has one.
        owners = [next((cell for cell in cells if cell[0] in blanks), None) for cells in layout.lane_cells]
        for name, keys in order.items():
            lanes = placed(layout, name)
            self.slots[name] = [Slot(lanes.get(key, NOWHERE), key[0]) for key in keys]
            self._shows[name] = [s.lane != NOWHERE and owners[s.lane] == (name, s.level) for s in self.slots[name]]
        self._tensors: dict[tuple[str, str, torch.device], Tensor] = {}

    def tensor(self, what: str, name: str, device: torch.device) -> Tensor:
        """`lanes`, `levels` or `shows` (whether a slot shows its lane's blank) of a stream's slots, [slots]."""
        key = (what, name, device)
        if key not in self._tensors:
            slots = self.slots[name]
            values: dict[str, list] = {
                "lanes": [max(slot.lane, 0) for slot in slots],
                "levels": [_ABSENT if slot.lane == NOWHERE else slot.level for slot in slots],
                "shows": self._shows[name],
            }
            kind = torch.bool if what == "shows" else torch.int64
            with torch.inference_mode(False):
                self._tensors[key] = torch.tensor(values[what], dtype=kind, device=device)
        return self._tensors[key]
