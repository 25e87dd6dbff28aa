"""`loglik` of pairs of utterances against transformers, on the same weights: padded batches, and batches by length.

    python benchmarks/scoring_lm.py [--size 22M] [--pairs 2000] [--rounds 20] [--only N] [--lengths even] [--threads 2]
        [--cpu-time] [--device cpu] [--batch 16 8 32] [--output table.md]

The model and the utterances of `training_lm.py`: each pair two utterances of 2 to 16 s. The peer computes the logits
of batches in the order of the pairs, or of rows sorted by length (all of them), and log-probabilities, each at its best
batch size of those given, which are tried first. The pairs are divided among the rounds (`--only`: so many rounds
of them), in which the three take turns in one process; sums are reported. Scores must be equal within 1e-4 a token.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Table
from training_lm import SIZES, model_of, peer_ids, peer_of, utterances

from vivavoce.nn.flops import FlopCount, peak

OURS, PEERS = "vivavoce", ("padded", "by length")
TARGETS = {"padded": 1.5, "by length": 1.0}


def their_scores(peer: Any, rows: Sequence[list[int]], batch: int, by_length: bool) -> list[float]:
    """Log-probabilities of rows of ids, in batches."""
    order = sorted(range(len(rows)), key=lambda n: len(rows[n])) if by_length else list(range(len(rows)))
    found = [0.0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            parts = [torch.tensor(rows[n]) for n in some]
            ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(peer.device)
            inside = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in parts], batch_first=True)
            inside = inside.to(peer.device)
            logits = peer(input_ids=ids, attention_mask=inside).logits[:, :-1].float()
            each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].double() * inside[:, 1:]
            for n, total in zip(some, each.sum(1).tolist()):
                found[n] = total
    return found


def our_scores(model: Any, rows: Sequence[Any]) -> list[float]:
    """The same by the verb; `rows` are units with their repetitions and the end."""
    return [found["units"][0] for found in model.loglik([[("units", units, True)] for units in rows])]


def main() -> None:
    """Measure, compare and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="22M", choices=list(SIZES))
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", type=int, help="rounds that are measured (default: all)")
    parser.add_argument("--lengths", default="even", choices=["even", "long"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time in place of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32], help="batch sizes that the peer tries")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = model_of(options.size)
    peer = peer_of(model).to(options.device).eval()
    model.system.to(options.device)
    now = time.process_time if options.cpu_time else time.perf_counter
    units = utterances(2 * options.pairs, options.lengths)
    ours = [torch.tensor([*row.tolist(), model.system.streams["units"].spec.end])[None] for row in units]
    theirs = [peer_ids(peer, row) for row in units]
    tokens = [len(row) - 1 for row in theirs]

    def timed(run: Callable[[], list[float]]) -> tuple[list[float], float]:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        start = now()
        return run(), now() - start

    with FlopCount() as count:
        our_scores(model, ours[:32])
    work = count.total / sum(tokens[:32])  # operations a token
    tried = {
        (name, batch): timed(lambda name=name, batch=batch: their_scores(peer, theirs[:64], batch, name != "padded"))[1]
        for name in PEERS
        for batch in options.batch
    }
    best = {name: min(options.batch, key=lambda batch: tried[name, batch]) for name in PEERS}
    spent = dict.fromkeys((OURS, *PEERS), 0.0)
    done, worst = 0, 0.0
    by_length = sorted(range(len(units)), key=lambda n: tokens[n])
    for number in range(options.only or options.rounds):
        mine = list(range(2 * number, len(units), 2 * options.rounds))
        mine = sorted({*mine, *(n + 1 for n in mine)})  # whole pairs
        scores: dict[str, list[float]] = {}
        runs: dict[str, Callable[[], list[float]]] = {
            OURS: lambda mine=mine: our_scores(model, [ours[n] for n in mine]),
            "padded": lambda mine=mine: their_scores(peer, [theirs[n] for n in mine], best["padded"], False),
            # rows that are neighbours among all, as if all were sorted at once
            "by length": lambda number=number: _neighbours(peer, theirs, by_length, best["by length"], number, options),
        }
        for name in sorted(runs, key=lambda name: (list(runs).index(name) + number) % len(runs)):
            scores[name], seconds = timed(runs[name])
            spent[name] += seconds / sum(tokens[n] for n in _rows(name, mine, by_length, best, number, options))
        done += len(mine)
        gaps = [abs(a - b) / tokens[n] for a, b, n in zip(scores[OURS], scores["padded"], mine, strict=True)]
        worst = max(worst, *gaps)
    if worst > 1e-4:
        raise SystemExit(f"scores differ by {worst:.2g} nats a token")
    rounds = options.only or options.rounds
    table = Table(
        f"{options.size}, {options.lengths} lengths, {done // 2} of {options.pairs} pairs, {options.threads} thread(s) "
        f"of {options.device}, greatest difference {worst:.1g} nats a token" + (", processor time" * options.cpu_time),
        ["scoring", "batch", "tokens/s", "share of peak", "all pairs", "times", "target"],
    )
    most = peak(options.device)
    for name, seconds in spent.items():
        rate = rounds / seconds
        times = f"{seconds / spent[OURS]:.2f}" if name != OURS else ""
        share = "" if options.cpu_time else f"{work * rate / most:.0%}"  # the peak is told by the clock
        whole = f"{sum(tokens) / rate:.0f} s"
        table.add(name, best.get(name, ""), f"{rate:.0f}", share, whole, times, TARGETS.get(name, ""))
    table.write(options.output)


def _rows(
    name: str, mine: list[int], by_length: list[int], best: dict[str, int], number: int, options: Any
) -> list[int]:
    """The rows that one scores in a round."""
    if name != "by length":
        return mine
    size = best[name]
    batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    return [n for batch in batches[number :: options.rounds] for n in batch]


def _neighbours(
    peer: Any, rows: Sequence[list[int]], by_length: list[int], size: int, number: int, options: Any
) -> list[float]:
    mine = _rows("by length", [], by_length, {"by length": size}, number, options)
    return their_scores(peer, [rows[n] for n in mine], size, True)


if __name__ == "__main__":
    main()
