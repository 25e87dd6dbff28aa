"""Speech units against transformers: HuBERT base to layer 9 and 500 clusters, fixed and mixed lengths, int8.

    python benchmarks/units.py [--parts fixed mixed int8] [--rounds 5] [--threads 1 2] [--cpu-time] [--output table.md]

Ours and the peer have the same random weights, run in one process and interleaved; medians. The peer has nine layers,
not twelve: it computes no more than is asked for. Mixed lengths: clips of 2 to 16 s, one after another, in padded
batches as they come, and in padded batches sorted by length, of several sizes. Processor time (--cpu-time) suits a
busy machine and one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Table, machine

from vivavoce.encoders.int8 import use_int8
from vivavoce.encoders.pretrained import load_weights, read_config
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.encoders.units import UnitTokenizer

RATE, LAYER, CLUSTERS = 16000, 9, 500
TARGETS = {"10 s": 1.3, "padded": 1.5, "sorted": 1.0}
Clips = list[torch.Tensor]


def models() -> tuple[UnitTokenizer, torch.nn.Module]:
    """Ours and transformers', of the same weights; centers are frames of noise, so that all clusters are near some."""
    from transformers import HubertConfig, HubertModel

    theirs = HubertModel(HubertConfig(num_hidden_layers=LAYER)).eval()
    encoder = SpeechTransformer(read_config(theirs.config.to_dict())).eval()
    load_weights(encoder, theirs.state_dict())
    with torch.no_grad():
        frames = encoder.features([signal(15 * RATE, 99)], layer=LAYER).values[0]
    units = UnitTokenizer(encoder, frames[torch.randperm(len(frames))[:CLUSTERS]], LAYER)
    return units.requires_grad_(False), theirs  # frozen, as a loaded tokenizer is


def rounded(ours: UnitTokenizer, theirs: torch.nn.Module, part: str) -> UnitTokenizer:
    """Ours with 8-bit products."""
    encoder = SpeechTransformer(ours.encoder.config).eval()
    load_weights(encoder, theirs.state_dict())
    use_int8(encoder, part)
    return UnitTokenizer(encoder, ours.centers, LAYER)


def signal(samples: int, seed: int) -> torch.Tensor:
    """Noise whose level and colour change every tenth of a second, as speech's do."""
    generator = torch.Generator().manual_seed(seed)
    steps = samples // (RATE // 10) + 2
    noise = torch.randn(samples, generator=generator)
    slow = torch.nn.functional.avg_pool1d(noise[None, None], 9, 1, 4)[0, 0]
    mix, level = (torch.rand(steps, generator=generator).repeat_interleave(RATE // 10)[:samples] for _ in range(2))
    return 0.3 * level * (mix * noise + (1 - mix) * 2 * slow)


def reference(theirs: torch.nn.Module, centers: torch.Tensor, clips: Clips) -> list[torch.Tensor]:
    """Units of clips by transformers, in one padded batch."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    mask = None if len(set(lengths.tolist())) == 1 else (torch.arange(batch.shape[1])[None] < lengths[:, None]).long()
    hidden = theirs(batch, attention_mask=mask).last_hidden_state
    units = torch.cdist(hidden, centers[None].expand(len(clips), -1, -1)).argmin(-1)
    counts = theirs._get_feat_extract_output_lengths(lengths).tolist()
    return [row[:count] for row, count in zip(units, counts)]


def in_batches(run: Callable[[Clips], object], clips: Clips, size: int) -> Callable[[], list[object]]:
    """All clips, so many at a time."""
    return lambda: [run(clips[first : first + size]) for first in range(0, len(clips), size)]


def measured(runs: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of every run, one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def changed(one: Clips, other: Clips) -> float:
    """Share of units that differ."""
    return float((torch.cat(one) != torch.cat(other)).float().mean())


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=["fixed", "mixed", "int8"], default=["fixed", "mixed", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clips", type=int, default=12, help="of mixed lengths")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="of sorted batches")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a busy machine, one thread")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    clock = time.process_time if options.cpu_time else time.perf_counter
    ours, theirs = models()
    ten = signal(10 * RATE, 0)
    lengths = (2 + 14 * torch.rand(options.clips, generator=torch.Generator().manual_seed(1))) * RATE
    mixed = [signal(int(size), seed) for seed, size in enumerate(lengths)]
    ordered = sorted(mixed, key=len)

    def peer(clips: Clips) -> list[torch.Tensor]:
        return reference(theirs, ours.centers, clips)

    def alone(clip: torch.Tensor) -> torch.Tensor:
        return ours.encode([clip])[0, 0]

    differ = changed([alone(ten)], peer([ten]))
    clocked = " (processor time)" if options.cpu_time else ""
    title = f"{machine()}, medians of {options.rounds}{clocked}; {differ:.2%} of 500 units differ from transformers'"
    table = Table(title, ["what", "threads", "vivavoce", "peer", "times real time", "ratio", "target"])

    def add(what: str, threads: int, mine: float, other: float, seconds: float, target: float | str = "") -> None:
        table.add(what, threads, f"{mine:.2f} s", f"{other:.2f} s", f"{seconds / mine:.1f}", f"{other / mine:.2f}",
                  target)  # fmt: skip

    for threads in options.threads:
        torch.set_num_threads(threads)
        runs: dict[str, Callable[[], object]] = {"ours": lambda: alone(ten), "theirs": lambda: peer([ten])}
        if "fixed" in options.parts:
            measured(runs, 1, clock)
            found = measured(runs, options.rounds, clock)
            add("10 s", threads, found["ours"], found["theirs"], 10, TARGETS["10 s"])
        if "int8" in options.parts:
            for part in ("blocks", "all"):
                small = rounded(ours, theirs, part)
                share = changed([alone(ten)], [small.encode([ten])[0, 0]])
                measured(runs, 1, clock)
                found = measured({**runs, "int8": lambda small=small: small.encode([ten])}, options.rounds, clock)
                name = f"10 s, int8 ({part}): {share:.1%} of the units differ"
                add(name, threads, found["int8"], found["theirs"], 10)
                add(f"10 s, int8 ({part}), peer: ours in float32", threads, found["int8"], found["ours"], 10)
        if "mixed" in options.parts:
            total = sum(map(len, mixed)) / RATE
            runs = {"ours": lambda: ours.encode(mixed), "padded": in_batches(peer, mixed, 4)}
            runs |= {f"{size}": in_batches(peer, ordered, size) for size in options.sizes}
            found = measured(runs, options.rounds, clock)
            mine, padded = found.pop("ours"), found.pop("padded")
            add("2 to 16 s, peer in padded batches of 4", threads, mine, padded, total, TARGETS["padded"])
            best = min(found, key=found.__getitem__)
            name = f"2 to 16 s, peer in sorted batches of {best}, its best"
            add(name, threads, mine, found[best], total, TARGETS["sorted"])
    table.write(options.output)


if __name__ == "__main__":
    main()
