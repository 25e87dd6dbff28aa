"""A token store of ten million rows: how soon it opens, how fast shuffled, packed batches come, and in how much memory.

    python benchmarks/store.py FOLDER [--rows 10000000] [--budget 8192] [--batches 60]

The store is made in FOLDER where there is none (some minutes, 3 GB for ten million rows of 100 to 200 tokens: twenty
shards, copied as often as is needed). Each reader is a process of its own; what it prints of memory is its peak, all
imports included. What one, two and three processes read together must be the same batches.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PER_SHARD, MADE = 1000, 20


def make(folder: Path, rows: int) -> None:
    """Twenty shards of random tokens, copied until there are `rows`."""
    from vivavoce.data.store import TokenWriter
    from vivavoce.data.tokens import StreamSpec, TokenRow

    writer = TokenWriter(folder, {"units": StreamSpec("hubert", "benchmark", (25.0,), 16000, size=500)}, PER_SHARD)
    rng = np.random.default_rng(0)
    shards = max(rows // PER_SHARD, 1)
    for k in range(min(MADE, shards)):
        some = [rng.integers(0, 500, (1, int(rng.integers(100, 200)))) for _ in range(PER_SHARD)]
        ids = (f"utterance-{k}-{i}" for i in range(PER_SHARD))
        writer.add([TokenRow(i, 5.0, "CC0-1.0", "made", {"units": [codes]}) for i, codes in zip(ids, some)])
    writer.finish()
    for k in range(MADE, shards):
        shutil.copyfile(folder / f"shard-{k % MADE:05d}.parquet", folder / f"shard-{k:05d}.parquet")


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def read(folder: Path, budget: int, batches: int, rank: int, world: int) -> dict[str, object]:
    """One process: its share of the first `batches` batches, and one batch of the third epoch."""
    import pyarrow.parquet  # noqa: F401  (the time of the import is not the store's)

    from vivavoce.data.store import TokenStore
    from vivavoce.data.token_batches import TokenBatches

    told: dict[str, object] = {"imports_mb": round(peak())}
    start = time.perf_counter()
    store = TokenStore(folder)
    told["open_s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    source = TokenBatches(store, budget, seed=1, pack=True)
    digests = []
    for step in range(batches // world):
        batch = source.batch(step, rank, world)
        codes = batch.streams["units"].numpy()
        digests.append(hashlib.sha256(b"".join(row.tobytes() for row in codes)).hexdigest()[:8])
        if not step:
            told["first_batch_s"] = round(time.perf_counter() - start, 2)
            start, tokens, rows = time.perf_counter(), 0, 0
        tokens += int(batch.lengths["units"].sum())
        rows += len(batch.rows)
    seconds = time.perf_counter() - start
    told |= {"tokens_per_s": round(tokens / seconds), "rows_per_s": round(rows / seconds), "batches": digests}
    start = time.perf_counter()
    mean = float(source.buckets.lengths[:10_000].mean())
    far = int(2.5 * len(store) * mean / budget)
    source.batch(far)
    told |= {"rows": len(store), "batch_of_third_epoch": far, "it_took_s": round(time.perf_counter() - start, 2)}
    told["peak_mb"] = round(peak())
    return told


def main() -> None:
    """Make the store where there is none, read it by one, two and three processes, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a batch")
    parser.add_argument("--batches", type=int, default=60, help="read by all processes together")
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        print(json.dumps(read(options.folder, options.budget, options.batches, *options.share)))
        return
    if not (options.folder / "store.json").is_file():
        make(options.folder, options.rows)
        from vivavoce.data.store import TokenStore

        TokenStore(options.folder)  # its index is made once
    keys = ["open_s", "first_batch_s", "tokens_per_s", "rows_per_s", "it_took_s", "imports_mb", "peak_mb"]
    print("| processes | opened | first batch | tokens a second | rows a second | batch of the third epoch | "
          "memory after imports | at most |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    first: list[str] = []
    for world in (1, 2, 3):
        command = [sys.executable, __file__, str(options.folder), "--budget", str(options.budget), "--batches",
                   str(options.batches), "--share"]  # fmt: skip
        running = [subprocess.Popen([*command, str(rank), str(world)], stdout=subprocess.PIPE, env=os.environ)
                   for rank in range(world)]  # fmt: skip
        told = [json.loads(process.communicate()[0]) for process in running]
        joined = [digest for step in zip(*(each["batches"] for each in told)) for digest in step]
        first = first or joined
        assert joined == first, f"{world} processes read other batches than one"
        worst = {key: max(each[key] for each in told) for key in keys}
        worst |= {key: sum(each[key] for each in told) for key in ("tokens_per_s", "rows_per_s")}
        print("| {world} | {open_s} s | {first_batch_s} s | {tokens_per_s:,} | {rows_per_s:,} | {it_took_s} s | "
              "{imports_mb} MB | {peak_mb} MB |".format(world=world, **worst), flush=True)  # fmt: skip
    print(f"\n{told[0]['rows']:,} rows; the batches of one, two and three processes are the same {len(first)}.")


if __name__ == "__main__":
    main()
