"""What every layout has to keep, for any lengths and rates."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layouts.cases import CASES, WRAPPED, Drawn, drawn
from vivavoce.layouts import LITERAL, PADDING, Given
from vivavoce.layouts.cells import level_lengths

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
FIELDS = ("stream", "level", "index", "position", "loss")
each_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
alone_and_wrapped = pytest.mark.parametrize("case", [*CASES, *WRAPPED], ids=[c.name for c in [*CASES, *WRAPPED]])
# Those whose counts are not given as a whole (such counts say themselves what is later).
OPEN_ENDED = [case for case in CASES if not (case.words or case.turns or case.chunks or "turn" in case.spec)]
quickly = settings(max_examples=60 if LONG else 4)


def place(d: Drawn):
    return d.case.layout.place(d.lengths, d.given, d.seed)


def draw_from(data, case) -> Drawn:
    return data.draw(drawn(case, longest=30 if LONG else 9))


def take_row(d: Drawn, row: int) -> Drawn:
    """One row alone."""
    def cut(tensors):
        return {name: tensor[row : row + 1] for name, tensor in tensors.items()}

    given_row = Given(cut(d.given.values), cut(d.given.counts), cut(d.given.known))
    return Drawn(d.case, cut(d.lengths), given_row, d.seed, 1)


def cells_of(d: Drawn):
    """stream -> mask [B, levels, T] of the cells that there are."""
    out = {}
    for spec in d.case.streams:
        lengths = level_lengths(spec, d.lengths[spec.name])
        out[spec.name] = torch.arange(int(lengths.max())) < lengths[..., None]
    return out


def walk(layout, state, filled=None, most=2000):
    """All columns of the streaming form; `filled` [B, lanes, columns] is told as it goes."""
    columns = []
    for n in range(most):
        last = None if filled is None or n == 0 else filled[:, :, n - 1]
        column, state = layout.next(last, state)
        if bool(column.done.all()):
            return columns, state
        columns.append(column)
    raise AssertionError("the layout never ends")


@alone_and_wrapped
@quickly
@given(data=st.data())
def test_inverse_of_layout_is_identity(case, data):
    """On every cell that is not named as dropped; and what is dropped has no place at all."""
    d = draw_from(data, case)
    places = place(d)
    exist = cells_of(d)
    values = {name: torch.arange(mask.numel()).view(mask.shape) + 1 for name, mask in exist.items()}
    back = places.invert(places.grid(values, blank=-7), fill=0)
    for name, mask in exist.items():
        found = torch.zeros_like(values[name])
        found[:, :, : back[name].shape[2]] = back[name]
        placed = found != 0
        assert torch.equal(found[placed], values[name][placed])
        assert not bool((placed & ~mask).any())
        if name not in case.layout.dropped:
            assert torch.equal(placed, mask)


@each_case
@quickly
@given(data=st.data())
def test_a_place_holds_one_cell_and_indices_ascend(case, data):
    """No two cells of a row share a place; along a lane the cells of a level never go back."""
    d = draw_from(data, case)
    places = place(d)
    for row in range(d.batch):
        here = places.valid[row]
        lane, column = places.lane[row, here], places.column[row, here]
        assert len(set(zip(lane.tolist(), column.tolist()))) == int(here.sum())
        assert bool((column >= 0).all()) and bool((column < places.columns[row]).all())
        assert bool((lane >= 0).all()) and bool((lane < places.lanes).all())
        order = (column * places.lanes + lane).diff()
        assert bool((order > 0).all())
        for number, spec in enumerate(case.streams):
            for level in range(spec.levels):
                for in_lane in range(places.lanes):
                    mine = here & (places.stream[row] == number) & (places.level[row] == level)
                    mine &= places.lane[row] == in_lane
                    assert places.index[row, mine].tolist() == sorted(places.index[row, mine].tolist())


@alone_and_wrapped
@quickly
@given(data=st.data())
def test_streaming_equals_offline(case, data):
    """Place for place, with position ids and loss, and ended in the same column; told nothing but the lengths."""
    d = draw_from(data, case)
    places = place(d)
    columns, _ = walk(case.layout, case.layout.start(d.batch, d.lengths, d.given, d.seed))
    assert len(columns) == int(places.columns.max())
    for n, column in enumerate(columns):
        assert torch.equal(column.done, places.columns <= n)
        for field in FIELDS:
            assert torch.equal(getattr(column, field), places.mask(field)[:, :, n]), (field, n)
        literal = column.stream == LITERAL
        assert torch.equal(column.forced[literal], column.index[literal])
        assert not bool((column.fill & (column.stream == PADDING)).any())
        assert not bool((column.fill & column.given).any())
        assert not bool(((column.loss == 1) & column.given).any())


@alone_and_wrapped
@quickly
@given(data=st.data())
def test_a_row_never_depends_on_its_neighbours(case, data):
    d = draw_from(data, case)
    places = place(d)
    for row in range(d.batch):
        alone = place(take_row(d, row))
        size = alone.stream.shape[1]
        assert torch.equal(alone.columns, places.columns[row : row + 1])
        for field in (*FIELDS, "lane", "column"):
            assert torch.equal(getattr(alone, field)[0], getattr(places, field)[row, :size])
        assert not bool(places.valid[row, size:].any())


@pytest.mark.parametrize("case", OPEN_ENDED, ids=[case.name for case in OPEN_ENDED])
@quickly
@given(data=st.data())
def test_a_step_never_depends_on_a_later_one(case, data):
    """Streams that go on: every column up to the end of the first shorter stream stays as it was."""
    d = draw_from(data, case)
    longer = Drawn(case, {name: n + data.draw(st.integers(0, 3)) for name, n in d.lengths.items()}, d.given, d.seed, 3)
    short, long = place(d).index_grid(), place(longer).index_grid()
    width = min(short.shape[2], long.shape[2])
    differs = (short[:, :, :width] != long[:, :, :width]).any(-1)
    if [block.compact for block in case.layout.program.blocks] == [False]:
        # Lanes on a clock: what comes later in one lane changes nothing but that lane, behind its last cell.
        for row, lane in differs.any(-1).nonzero().tolist():
            first = int(differs[row, lane].nonzero()[0])
            assert bool((short[row, lane, first:, 0] == PADDING).all())
        return
    for row in range(d.batch):
        last = [width]
        for number, spec in enumerate(case.streams):
            if torch.equal(d.lengths[spec.name][row], longer.lengths[spec.name][row]):
                continue
            for level in range(spec.levels):
                mine = (short[row, :, :, 0] == number) & (short[row, :, :, 1] == level)
                columns = mine.any(0).nonzero()
                last.append(int(columns.max()) + 1 if columns.numel() else 0)
        assert not bool(differs[row, :, : min(last)].any())


@each_case
def test_fingerprint_tells_layouts_apart(case):
    from vivavoce.layouts import build_layout

    assert build_layout(case.spec, case.streams).fingerprint == case.layout.fingerprint
    same = [other.name for other in CASES if other.layout.fingerprint == case.layout.fingerprint]
    assert same == [case.name]


@each_case
@quickly
@given(data=st.data())
def test_rows_start_stop_are_held_and_reset_independently(case, data):
    """A row that is held keeps its state to the bit and goes on as if nothing had been; so does one put elsewhere."""
    d = draw_from(data, case)
    layout = case.layout
    whole = place(d)
    grids = {field: whole.mask(field) for field in FIELDS}
    state = layout.start(d.batch, d.lengths, d.given, d.seed)
    age = [0] * d.batch
    for _ in range(12):
        rows = torch.tensor(data.draw(st.lists(st.booleans(), min_size=d.batch, max_size=d.batch)))
        column, after = layout.next(None, state, rows)
        for row in range(d.batch):
            if not rows[row]:
                assert all(torch.equal(after[key][row], state[key][row]) for key in state)
                assert bool((column.stream[row] == PADDING).all())
            elif age[row] < int(whole.columns[row]):
                for field in FIELDS:
                    assert torch.equal(getattr(column, field)[row], grids[field][row, :, age[row]])
                age[row] += 1
            else:
                assert bool(column.done[row])
        state = after
    fresh = take_row(d, 0)
    state = layout.put(state, [1], layout.start(1, fresh.lengths, fresh.given, fresh.seed))
    column, _ = layout.next(None, state)
    if int(whole.columns[0]):
        assert torch.equal(column.index[1], grids["index"][0, :, 0])
