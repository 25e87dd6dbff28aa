"""What every streaming module promises, as checks: chunks = whole, batch = single, rows apart, published reach."""

import math
import random
from fractions import Fraction

import torch
from torch import Tensor

from vivavoce.nn.streaming import INFINITE, State, Streaming, join_rows, stack, valid

NAN = float("nan")


def same(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max()) if b.numel() else 1.0), rtol=0)


def check_padded_batch(module: Streaming, signals: list[Tensor], singles: list[Tensor], tolerance: float) -> None:
    """One batch, padded at the right with NaN, gives every row what it gets alone."""
    lengths = torch.tensor([len(signal) for signal in signals])
    batch = signals[0].new_full((len(signals), int(lengths.max()), signals[0].shape[1]), NAN)
    for row, signal in zip(batch, signals):
        row[: len(signal)] = signal
    y = module(batch, lengths)
    for row, single, length in zip(y, singles, lengths):
        assert len(single) == int(module.frames(length)), "frames() does not tell the length of the output"
        same(row[: len(single)], single, tolerance)


def check_lockstep(
    module: Streaming, signals: list[Tensor], singles: list[Tensor], seed: int, tolerance: float, most: int
) -> None:
    """Rows begin at different times, hear chunks of different sizes, pause; one is reset and starts again.

    Now and then rows leave the batch for a turn and are put or stacked back. Every row must say what it says alone, and
    a row that hears nothing must keep its state to the bit. One row is also heard by itself, chunk by chunk.
    """
    chance = random.Random(seed)
    rows = len(signals)
    state = module.initial_state(rows, dtype=signals[0].dtype)
    fresh = state
    heard, said = [0] * rows, [[] for _ in range(rows)]
    begins = [chance.randrange(3) for _ in range(rows)]
    restart = chance.randrange(rows)
    restarted = False
    turn = 0
    while any(heard[row] < len(signals[row]) for row in range(rows)) or not restarted:
        if not restarted and (heard[restart] > len(signals[restart]) // 2 or heard[restart] == len(signals[restart])):
            if chance.random() < 0.5:
                state = state.where(torch.arange(rows) == restart, fresh)
            else:
                state = state.put([restart], module.initial_state(1, dtype=signals[0].dtype))
            heard[restart], said[restart], restarted = 0, [], True
        counts = []
        for row in range(rows):
            left = len(signals[row]) - heard[row]
            pause = turn < begins[row] or chance.random() < 0.2
            counts.append(0 if pause else min(left, chance.choice([1, 2, 3, most, chance.randint(1, most)])))
        if chance.random() < 0.3 and min(len(s) - h for s, h in zip(signals, heard)) > 0:
            counts = [1] * rows
        chunk = signals[0].new_full((rows, max([*counts, 1]), signals[0].shape[1]), NAN)
        for row, count in enumerate(counts):
            chunk[row, :count] = signals[row][heard[row] : heard[row] + count]
        before = state
        everything = min(counts) == chunk.shape[1] and chance.random() < 0.5
        if everything:
            y, state = module.step(chunk, state)
        else:
            y, state = step_somehow(module, chunk, state, torch.tensor(counts), chance)
        for row, count in enumerate(counts):
            if count == 0:
                assert int(state.emitted[row]) == 0
                unchanged(before.take([row]), state.take([row]))
            said[row].append(y[row][: int(state.emitted[row])])
            heard[row] += count
        turn += 1
    ending = torch.tensor([chance.random() < 0.7 for _ in range(rows)])
    for rows_now in (ending, ~ending):
        y, after = module.flush(state, rows_now)
        for row in rows_now.nonzero()[:, 0].tolist():
            said[row].append(y[row, : int(after.emitted[row])])
        assert int(after.emitted[~rows_now].sum()) == 0, "a row that was not flushed has answered"
    for row in range(rows):
        whole = torch.cat(said[row])
        assert len(whole) == len(singles[row])
        same(whole, singles[row], tolerance)
    longest = max(range(rows), key=lambda row: len(signals[row]))
    same(in_chunks(module, signals[longest], chance, most), singles[longest], tolerance)


def check_stack(stack: Streaming, width: int, sizes: list[int], seed: int) -> None:
    """Rows of about `sizes` chunks of noise [frames, width], float64: padded in a batch, and in lockstep, as alone."""
    torch.manual_seed(seed)
    signals = []
    for size in sizes:
        length = max(0, size * stack.chunk - int(torch.randint(stack.chunk, ())))
        signals.append(torch.randn(length, width, dtype=torch.float64))
    singles = [alone(stack, signal) for signal in signals]
    check_padded_batch(stack, signals, singles, 1e-9)
    check_lockstep(stack, signals, singles, seed, 1e-9, most=2 * stack.chunk + 3)


def step_somehow(
    module: Streaming, chunk: Tensor, state: State, counts: Tensor, chance: random.Random
) -> tuple[list[Tensor], State]:
    """A step of all rows: most times together, else one row apart and put back, or in two batches, stacked again."""
    rows, way = len(counts), chance.random()
    if way < 0.1:
        apart = chance.randrange(rows)
        here = torch.arange(rows) == apart
        mine, own = module.step(chunk[here], state.take([apart]), counts[here])
        y, state = module.step(chunk, state, counts * ~here)
        return [mine[0] if row == apart else y[row] for row in range(rows)], state.put([apart], own)
    if way < 0.2 and rows > 1:
        cut = chance.randrange(1, rows)
        y, first = module.step(chunk[:cut], state.take(range(cut)), counts[:cut])
        more, second = module.step(chunk[cut:], state.take(range(cut, rows)), counts[cut:])
        return [*y, *more], stack([first, second])
    y, state = module.step(chunk, state, counts)
    return list(y), state


def in_chunks(module: Streaming, signal: Tensor, chance: random.Random, most: int) -> Tensor:
    """The signal [T, D] as a batch of one, chunk by chunk: rows of one age go through modules by a shorter way."""
    state, parts, at = module.initial_state(1, dtype=signal.dtype), [], 0
    while at < len(signal) or not parts:
        size = chance.randint(1, most)
        y, state = module.step(signal[None, at : at + size], state)
        parts.append((y, state.emitted))
        at += size
    y, state = module.flush(state)
    return join_rows([*parts, (y, state.emitted)])[0][0]


def unchanged(before: State, after: State) -> None:
    """Equal to the bit, `emitted` apart."""
    for name, value in before.items():
        if isinstance(value, State):
            unchanged(value, after[name])
        elif name != "emitted":
            kept = after[name]
            if kept.shape != value.shape:  # a store that has grown for other rows
                kept = kept[:, : value.shape[1]]
            assert torch.equal(value, kept), f"a held row's '{name}' has changed"


def check_published(module: Streaming, width: int, dtype: torch.dtype = torch.float64) -> None:
    """chunk, lookahead, receptive_field and warmup, by perturbing single frames and by counting."""
    hop = Fraction(module.hop)
    cell_inputs, cell_outputs = module.chunk, int(module.chunk / hop)
    assert cell_outputs * hop == module.chunk, "a chunk is no whole number of outputs"

    if module.lookahead == INFINITE:
        y, state = module.step(torch.randn(1, 40, width, dtype=dtype), module.initial_state(1, dtype=dtype))
        assert y.shape[1] == 0 and module.flush(state)[0].shape[1] > 0
        return

    # Counting: nothing before the warm-up, something with it; then every chunk brings its share.
    state = module.initial_state(1, dtype=dtype)
    _, state = module.step(torch.randn(1, module.warmup - 1, width, dtype=dtype), state)
    assert int(state.emitted) == 0, "it answers before the published warm-up"
    _, state = module.step(torch.randn(1, 1, width, dtype=dtype), state)
    assert int(state.emitted) > 0, "it does not answer after the published warm-up"
    for _ in range(3):
        _, state = module.step(torch.randn(1, module.chunk, width, dtype=dtype), state)
        assert int(state.emitted) * hop == module.chunk, "a chunk does not give its share of outputs"
    for outputs in (1, 2, 5):
        wanted = module.inputs_for(outputs)
        _, state = module.step(torch.randn(1, wanted, width, dtype=dtype), module.initial_state(1, dtype=dtype))
        assert int(state.emitted) >= outputs, f"inputs_for({outputs}) is too few"

    # Perturbing: a chunk of outputs hears from its first input - receptive_field to its last + lookahead, no further.
    past = 60 * cell_inputs if module.receptive_field == INFINITE else int(module.receptive_field)
    ahead = int(module.lookahead)
    cell = math.ceil((2 * past + module.warmup) / cell_inputs) + 1
    length = (cell + 2) * cell_inputs + ahead + past
    x = torch.randn(1, length, width, dtype=dtype)
    base = module(x)

    def heard_from(position: int) -> bool:
        """Whether the output cell (the outputs of one chunk) changes with the input at `position`."""
        other = x.clone()
        other[0, position] += torch.randn(width, dtype=dtype)
        outputs = slice(cell * cell_outputs, (cell + 1) * cell_outputs)
        return not torch.equal(module(other)[:, outputs], base[:, outputs])

    first, last = cell * cell_inputs, (cell + 1) * cell_inputs - 1
    assert not heard_from(last + ahead + 1), "it hears further ahead than published"
    assert heard_from(last + ahead), "it looks less far ahead than published"
    if module.receptive_field != INFINITE:
        assert heard_from(first - past), "its receptive field is smaller than published"
        assert not heard_from(first - past - 1), "its receptive field is larger than published"


def check_gradient(module: Streaming, width: int, length: int, dtype: torch.dtype = torch.float64) -> None:
    """Every parameter and the input get a gradient, finite although the padding is NaN."""
    lengths = torch.tensor([length, length // 2 + 1])
    x = torch.randn(2, length, width, dtype=dtype)
    x[1, lengths[1] :] = NAN
    x.requires_grad_()
    y = module(x, lengths)
    kept = y[valid(module.frames(lengths), y.shape[1])]
    (kept * torch.randn_like(kept)).sum().backward()
    for name, parameter in [*module.named_parameters(), ("the input", x)]:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), f"gradient of {name}"
        assert parameter.grad.abs().sum() > 0, f"no gradient flows to {name}"


def alone(module: Streaming, signal: Tensor) -> Tensor:
    """The whole signal [T, D] as a batch of one: one step and a flush."""
    state = module.initial_state(1, dtype=signal.dtype)
    y, state = module.step(signal[None], state)
    rest, end = module.flush(state)
    whole = join_rows([(y, state.emitted), (rest, end.emitted)])[0][0]
    same(module(signal[None])[0], whole, 1e-9 if signal.dtype == torch.float64 else 1e-4)
    return whole
