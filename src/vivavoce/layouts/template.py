"""template: literals, streams, turns and other layouts in a given order; what a task puts around its layout.

    {kind: template, literals: {sos: 6561, turn: 6562}, order: [sos, text, turn, voice]}
    {kind: template, order: [{turns: [{literal: 1}, user, {literal: 2}, {kind: interleaved, text: 13, voice: 26}]}]}

An item of `order` is a literal (its name or id, or {literal: id or a list with one id a lane, loss: true}), a stream or
slice (its levels flattened), the specification of any kind of layout, or {turns: items}, which repeats its items for
every turn: `Given.counts["turn/STREAM"]` [B, turns] says how many frames (units, where it is deduplicated) of each
stream a turn has; the last may be OPEN: until the stream's end token.
"""

from typing import Any, Literal

from pydantic import Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.clocked import lane_block
from vivavoce.layouts.program import LITERALS, RUN, SKIP, Builder
from vivavoce.layouts.spec import KindSpec

Item = int | str | dict[str, Any]


class TemplateSpec(KindSpec):
    """order: what follows what."""

    kind: Literal["template"] = "template"
    order: list[Item] = Field(min_length=1)

    def write(self, builder: Builder) -> None:
        for i, item in enumerate(self.order):
            write_item(item, builder, f"layout.order[{i}]")


def write_item(item: Item, builder: Builder, path: str) -> None:
    """Append one item of a template."""
    if isinstance(item, int) or (isinstance(item, str) and item in builder.literals):
        builder.literal(resolve(item, builder, path))
    elif isinstance(item, str):
        builder.run(lane_block(builder, KindSpec.parse(builder, [item])))
    elif "literal" in item:
        if unknown := sorted(set(item) - {"literal", "loss"}):
            raise RecipeError(f"{path}: unknown keys {unknown}; a literal has 'literal' and 'loss'")
        ids = item["literal"]
        each = [None if x is None else resolve(x, builder, path) for x in (ids if isinstance(ids, list) else [ids])]
        builder.literal(each, loss=bool(item.get("loss", False)))
    elif "turns" in item:
        if unknown := sorted(set(item) - {"turns"}):
            raise RecipeError(f"{path}: unknown keys {unknown} beside 'turns'")
        write_turns(item["turns"], builder, path)
    else:
        from vivavoce.layouts.build import kind_of

        kind_of(item, builder.streams, path).write(builder)


def resolve(literal: int | str, builder: Builder, path: str) -> int:
    """A literal's id, from its name or as it is."""
    if isinstance(literal, int) and literal >= 0:
        return literal
    if isinstance(literal, str) and literal in builder.literals:
        return builder.literals[literal]
    raise RecipeError(f"{path}: no literal {literal!r}; layout.literals names {sorted(builder.literals)}")


def write_turns(items: list[Item], builder: Builder, path: str) -> None:
    """The items once for every turn, with the streams cut to the turn."""
    tables: dict[str, int] = {}
    cut = mentioned(items, builder)
    if not cut:
        raise RecipeError(f"{path}.turns: no stream takes part in the turns")
    if again := sorted(set(cut) & builder.windowed):
        raise RecipeError(f"{path}.turns: {again} are cut into turns already; turns do not nest")
    for name in cut:
        tables[name] = builder.table("counts", name=f"turn/{name}")
    whole = [channel for channels in cut.values() for channel in channels]
    start = builder.begin_while(whole, table=tables[next(iter(cut))], whole=True)
    for name, channels in cut.items():
        builder.window(channels, tables[name])
    builder.windowed |= set(cut)
    for i, item in enumerate(items):
        write_item(item, builder, f"{path}.turns[{i}]")
    builder.windowed -= set(cut)
    builder.end_while(start, list(tables.values()))
    builder.window(whole)


def mentioned(items: list[Item], builder: Builder) -> dict[str, list[int]]:
    """Streams that the items place, with their channels, found by writing the items into a copy of the builder."""
    trial = builder.copy()
    for item in items:
        write_item(item, trial, "layout")
    placed = {channel for op in trial.ops[len(builder.ops) :] if op.code in (RUN, SKIP) for channel in op.channels}
    streams: dict[str, list[int]] = {}
    for channel in sorted(placed - {LITERALS}):
        streams.setdefault(trial.streams[trial.channels[channel].stream].name, []).append(channel)
    return streams
