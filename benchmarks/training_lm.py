"""Training tokens a second of a unit language model of Slam's form, against transformers' `Trainer`.

    python benchmarks/training_lm.py [--size 22M] [--rounds 3] [--steps 2] [--tokens 2048] [--lengths even]
        [--threads 2] [--cpu-time] [--device cpu] [--dtype float32] [--micro padded=7 …] [--output table.md]

A Qwen2 over 500 units, the same random weights; utterances of 2 to 16 s at 25 Hz without repetitions. Ours trains from
a token store as the recipe `slam` does; the peer from the same units in memory: padded (a step's utterances at once,
or in shares), sampled by length, and flattened by its own collator without padding. All have the same optimizer (fused
AdamW), precision, norm and, about, number of tokens a step; each computes at once what is best of a few sizes, which
are tried first (or told: `--micro`). Each contestant is a process of its own, they take turns, and medians are
reported. Tokens are those that are learned, padding is none; memory is the most that the process had (on a GPU: what
torch had there). --cpu-time (with one thread): processor time, which others' turns on a busy machine do not enter.
Needs `pip install --no-deps accelerate==1.15.0 psutil==7.2.2`.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RATE, UNITS, UTTERANCES, CONTEXT = 25, 500, 2000, 1024
SIZES = {  # layers, width, heads, heads of keys, inner width
    "3M": (4, 192, 3, 1, 1024),
    "22M": (8, 384, 6, 2, 2048),
    "43M": (10, 512, 8, 2, 2560),
}
OURS, PEERS = "vivavoce", ("padded", "padded, in shares", "by length", "flattened")
TARGETS = {"padded": 1.5, "padded, in shares": 1.5, "by length": 1.0, "flattened": 1.0}
RATE_OF_LEARNING, BETAS, CLIP = 1e-3, (0.9, 0.999), 0.5


def utterances(count: int, kind: str = "even", seed: int = 0) -> list[np.ndarray]:
    """Units of utterances with their repetitions. Durations: `even`, uniform from 2 to 16 s; `long`, as in
    LibriSpeech's training sets, 60 % of them above 12 s. A unit lasts 1.5 frames on average."""
    chance = np.random.default_rng(seed)
    seconds = chance.uniform(2, 16, count)
    if kind == "long":
        seconds = np.where(chance.random(count) < 0.6, chance.uniform(12, 16, count), chance.uniform(2, 12, count))
    found = []
    for frames in (seconds * RATE).astype(int):
        runs = chance.choice([1, 2, 3], frames, p=[0.62, 0.26, 0.12])
        steps = chance.integers(1, UNITS, frames)  # never 0: neighbours differ
        found.append(np.repeat(np.cumsum(steps) % UNITS, runs)[:frames])
    return found


def without_repetitions(units: np.ndarray) -> np.ndarray:
    """Of equal neighbours the first."""
    return units[np.flatnonzero(np.diff(units, prepend=-1))]


def recipe(size: str, store: Path | None = None, **phase: Any) -> Any:
    """The model, and its training as in the recipe `slam`."""
    from vivavoce.schema import read_recipe

    layers, width, heads, kv_heads, inner = SIZES[size]
    base = read_recipe("layout-dedup").model_dump(mode="json", exclude_defaults=True)
    base["tokenizers"]["units"] |= {"size": UNITS, "rate": RATE}
    base["stages"][0]["backbone"] = {
        "kind": "decoder", "layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads, "feedforward": inner,
        "norm_eps": 1.0e-6, "qkv_bias": True,
    }  # fmt: skip
    base["stages"][0]["heads"] = {"units": {"kind": "linear", "bias": False}}
    base["training"][0] |= {
        "data": {"kind": "token_store", "path": str(store), "pack": True, "context": CONTEXT} if store else
        {"kind": "token_patterns"},
        "optimizer": {"learning_rate": RATE_OF_LEARNING, "betas": list(BETAS), "clip": CLIP, "schedule": "cosine"},
        **phase,
    }  # fmt: skip
    return read_recipe(base)


def clock(options: argparse.Namespace) -> Any:
    """What tells the time."""
    return time.process_time if options.cpu_time else time.perf_counter


def model_of(size: str) -> Any:
    """Ours, with random weights."""
    from vivavoce.systems import assemble

    return assemble(recipe(size), seed=0)


def peer_of(model: Any) -> Any:
    """transformers' model with the same weights (ids: begin and end, then the units)."""
    from transformers import AutoModelForCausalLM

    from vivavoce.systems.exports import save_as

    with tempfile.TemporaryDirectory() as folder:
        save_as(model, "transformers", folder)
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def peer_ids(model: Any, units: np.ndarray) -> list[int]:
    """A row for the peer: begin, units, end."""
    offset = model.config.vocab_size - UNITS
    ids = (without_repetitions(units) + offset).tolist()
    return [model.config.bos_token_id, *ids, model.config.eos_token_id]


class Ours:
    """Our training, some steps at a time. What is tried: shares of a step."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        from vivavoce.data.store import TokenWriter
        from vivavoce.data.tokens import StreamSpec, TokenRow

        self.options, self.folder = options, folder
        self.store, self.runs = folder / "store", 0
        writer = TokenWriter(self.store, {"units": StreamSpec("units", "made", (float(RATE),), 16000, size=UNITS)})
        rows = enumerate(utterances(UTTERANCES, options.lengths))
        writer.add([TokenRow(f"u{n}", len(u) / RATE, "CC0", "made", {"units": [u[None]]}) for n, u in rows])
        writer.finish()
        self.model = model_of(options.size)
        self.choices = [share for share in (options.tokens, options.tokens // 2, options.tokens // 4) if share >= 512]

    def run(self, micro: int, steps: int) -> dict[str, float]:
        """Seconds and tokens of `steps` steps, after a first one; micro: columns that are computed at once."""
        from vivavoce.training import RunDirectory, train_phase
        from vivavoce.training.assembly import settings_for, task_for
        from vivavoce.training.metrics import MetricsLog

        self.runs += 1
        windows = max(1, round(self.options.tokens / CONTEXT))
        found = recipe(self.options.size, self.store, steps=steps + 1, batch=windows)
        phase = found.training[0]
        chosen = {"device": self.options.device, "dtype": self.options.dtype, "log_every": 1, "evaluate_every": 10**6}
        settings = settings_for(phase, {**chosen, "accumulate": max(1, round(self.options.tokens / micro))})
        task, run = task_for(found, phase, self.model), RunDirectory.open(self.folder / f"run{self.runs}")
        source, first = task.source, self.runs * 1000
        task.source = lambda step: source(first + step)  # type: ignore[method-assign]
        lines: list[dict[str, float]] = []
        write, now = MetricsLog.write, clock(self.options)

        def noted(log: Any, step: int, values: Any) -> None:
            write(log, step, values)
            if "tokens" in values:
                lines.append({**values, "seconds": now()})

        MetricsLog.write = noted  # type: ignore[method-assign]
        try:
            train_phase(task, run, settings)
        finally:
            MetricsLog.write = write  # type: ignore[method-assign]
        used = [line["mfu"] for line in lines[1:] if "mfu" in line]
        return {
            "seconds": lines[-1]["seconds"] - lines[0]["seconds"],
            "tokens": lines[-1]["tokens"] - lines[0]["tokens"],
            "padding": 0.0,
            "mfu": statistics.fmean(used) if used else 0.0,
        }


class Peer:
    """transformers' Trainer, some steps at a time. What is tried: utterances at once."""

    def __init__(self, options: argparse.Namespace, folder: Path, way: str):
        self.options, self.folder, self.way = options, folder, way
        self.model = peer_of(model_of(options.size))
        rows = [peer_ids(self.model, units) for units in utterances(UTTERANCES, options.lengths)]
        self.rows = [{"input_ids": ids, "length": len(ids)} for ids in rows]
        mean = statistics.fmean(len(ids) - 1 for ids in rows)
        self.whole = max(1, round(options.tokens / mean))
        parts = {"padded": (1,), "padded, in shares": (2, 4, 8)}.get(way, (1, 2, 4))
        self.choices = sorted({max(1, self.whole // part) for part in parts}, reverse=True)
        self.runs = 0

    def run(self, micro: int, steps: int) -> dict[str, float]:
        """Seconds and tokens of `steps` steps, after a first one; micro: utterances that are computed at once."""
        import torch
        from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

        told: list[tuple[float, int, int]] = []
        sums = [0, 0]

        class Counting(Trainer):
            def training_step(self, model: Any, inputs: Any, *more: Any) -> Any:
                sums[0] += int((inputs["labels"] != -100).sum())
                sums[1] += inputs["input_ids"].numel() - (1 if way == "flattened" else len(inputs["input_ids"]))
                return super().training_step(model, inputs, *more)

        class Clock(TrainerCallback):
            def on_step_end(self, *given: Any, **more: Any) -> None:
                told.append((now(), *sums))

        def padded(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            rows = [torch.tensor(item["input_ids"]) for item in items]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            inside = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            labels = torch.where(inside > 0, ids, -100)
            labels[:, 0] = -100
            return {"input_ids": ids, "attention_mask": inside, "labels": labels}

        way, now, self.runs = self.way, clock(self.options), self.runs + 1
        arguments = TrainingArguments(
            output_dir=str(self.folder / "out"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=max(1, round(self.whole / micro)),
            max_steps=steps + 1,
            learning_rate=RATE_OF_LEARNING,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            lr_scheduler_type="cosine",
            bf16=self.options.dtype == "bfloat16",
            use_cpu=self.options.device == "cpu",
            train_sampling_strategy="group_by_length" if way == "by length" else "random",
            seed=self.runs,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=way != "flattened",
        )
        collate = DataCollatorWithFlattening() if way == "flattened" else padded
        rows = [{"input_ids": row["input_ids"]} for row in self.rows] if way == "flattened" else self.rows
        trainer = Counting(self.model, arguments, collate, rows, callbacks=[Clock()])
        trainer.train()
        (start, *before), (end, *after) = told[0], told[-1]
        tokens, places = after[0] - before[0], after[1] - before[1]
        return {"seconds": end - start, "tokens": tokens, "padding": 1 - tokens / max(places, tokens), "mfu": 0.0}


def work(options: argparse.Namespace) -> None:
    """A contestant: answers each line of its input, {"micro", "steps"}, by a line."""
    import torch

    torch.set_num_threads(options.threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as folder:
        name = options.contestant
        one = Ours(options, Path(folder)) if name == OURS else Peer(options, Path(folder), name)
        print(json.dumps({"choices": one.choices}), file=answers, flush=True)
        for line in sys.stdin:
            found = one.run(**json.loads(line))
            gc.collect()
            on_gpu = options.device.startswith("cuda")
            most = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(
                resource.RUSAGE_SELF
            ).ru_maxrss
            print(json.dumps({**found, "memory": most}), file=answers, flush=True)


class Contestant:
    """A process that trains when it is told to, and waits meanwhile."""

    def __init__(self, name: str, arguments: list[str]):
        command = [sys.executable, __file__, *arguments, "--contestant", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = name

    def answer(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended (see above)")
        return json.loads(line)

    def ask(self, micro: int, steps: int) -> dict[str, Any]:
        """Have it train."""
        assert self.process.stdin is not None
        print(json.dumps({"micro": micro, "steps": steps}), file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="22M", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps a round, after one that is not")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step, about")
    parser.add_argument("--lengths", default="even", choices=["even", "long"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time in place of the clock's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--micro", nargs="*", default=[], metavar="NAME=N", help="what is computed at once, not tried")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        work(options)
        return
    arguments = [f"--{name}={getattr(options, name)}" for name in
                 ("size", "tokens", "lengths", "threads", "device", "dtype")]  # fmt: skip
    arguments += ["--cpu-time"] if options.cpu_time else []
    everybody = [Contestant(name, arguments) for name in (OURS, *options.peers)]
    told = dict(each.split("=") for each in options.micro)
    best: dict[str, int] = {}
    for one in everybody:
        choices = one.answer()["choices"]
        if one.name in told:
            best[one.name] = int(told[one.name])
            continue
        rates = {}
        for choice in choices:
            found = one.ask(choice, 1)
            rates[choice] = found["tokens"] / found["seconds"]
            print(f"{one.name}, {choice} at once: {rates[choice]:.0f} tokens/s", file=sys.stderr, flush=True)
        best[one.name] = max(rates, key=lambda choice: rates[choice])
    found: dict[str, list[dict[str, Any]]] = {one.name: [] for one in everybody}
    for _ in range(options.rounds):
        for one in everybody:
            found[one.name].append(one.ask(best[one.name], options.steps))
    for one in everybody:
        one.end()
    speeds = {name: statistics.median(r["tokens"] / r["seconds"] for r in each) for name, each in found.items()}
    used = statistics.median(r["mfu"] for r in found[OURS])
    from measure import Table  # torch, which the processes load for themselves

    table = Table(
        f"{options.size}, {options.lengths} lengths, {options.threads} thread(s) of {options.device}, {options.dtype}, "
        f"about {options.tokens} tokens a step, medians of {options.rounds} rounds of {options.steps} steps"
        + (", processor time" if options.cpu_time else ""),
        ["training", "at once", "tokens/s", "MFU", "padding", "memory", "times", "target"],
    )
    for name, each in found.items():
        share = "" if options.cpu_time else f"{used * speeds[name] / speeds[OURS]:.0%}"  # a peak is told by the clock
        unit = "columns" if name == OURS else "utterances"
        padding = statistics.fmean(r["padding"] for r in each)
        times = f"{speeds[OURS] / speeds[name]:.2f}" if name != OURS else ""
        memory = f"{each[-1]['memory'] / 2**20:.0f} MB"
        table.add(
            name, f"{best[name]} {unit}", f"{speeds[name]:.0f}", share, f"{padding:.0%}", memory, times,
            TARGETS.get(name, ""),
        )  # fmt: skip
    table.write(options.output)


if __name__ == "__main__":
    main()
