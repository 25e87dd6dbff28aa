"""One streaming step of a temporal and a depth transformer against the moshi package's `LMGen`, on the same weights.

    python benchmarks/streaming_lm.py [--sizes 105M 365M] [--rounds 40] [--threads 1 2] [--rows 1] [--output table.md]
    python benchmarks/streaming_lm.py --sizes 105M --threads 1 --rows 1 2 4 8 16

Random weights of Moshi's form, codes in and sampled codes out, one conversation or several in lockstep, the attention's
context of 250 frames full. Ours and the peer run in one process, interleaved round by round; medians are reported, and
the milliseconds that reading all weights of a step once takes, by a sum over as much memory in the same run. Norms of
the peer are not compiled (NO_TORCH_COMPILE=1). Beside int8: of tokens that are drawn with the same random numbers after
the same past, the share that float32 draws too, and how much the loss of what float32 says changes.
Needs `pip install --no-deps -r tests/peers.txt` and the extra `openvino`.
"""

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Table, interleaved, machine, reading
from torch import nn

os.environ.setdefault("NO_TORCH_COMPILE", "1")
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "shims"))

from vivavoce.codecs import PUBLISHED, build_codec
from vivavoce.lm import decoding
from vivavoce.nn.streaming import State
from vivavoce.systems.engines import use_engine
from vivavoce.systems.imports import kyutai
from vivavoce.systems.imports.moshi import assembled, check_codec, recipe_of
from vivavoce.systems.imports.pairs import fill
from vivavoce.tokenizers.pieces import SentencePieces

LEVELS, CARD, CONTEXT = 8, 2048, 250
SIZES = {"105M": (512, 8, 256), "365M": (1024, 16, 512)}  # width and heads of the temporal, width of the depth part
TARGETS = {("105M", "float32"): 2.5, ("365M", "float32"): 1.5, ("105M", "int8"): 6.0, ("365M", "int8"): 4.5,
           ("105M", "int8-dynamic"): 6.0, ("365M", "int8-dynamic"): 4.5}  # fmt: skip
ENGINES = (("torch", "float32"), ("openvino", "float32"), ("openvino", "int8"), ("openvino", "int8-dynamic"))


class ToldCodes(nn.Module):
    """In place of a codec: the first samples of a frame are its codes; what is said is silence."""

    sample_rate, hop, codebooks, frame_rate = 24000, 1920, LEVELS, 12.5

    def encoder_state(self, rows: int) -> State:
        """Nothing."""
        return State(emitted=torch.zeros(rows, dtype=torch.int64))

    decoder_state = encoder_state

    def encode_step(self, wave: Any, state: State, lengths: Any = None, consume: bool = False) -> Any:
        """The codes that a frame tells."""
        return (wave[:, 0, :LEVELS, None] * 4096).round().long(), State(emitted=torch.ones(len(wave)).long())

    def decode_step(self, codes: Any, state: State, lengths: Any = None) -> Any:
        """Silence."""
        return torch.zeros(len(codes), 1, self.hop), state


def peer(size: str) -> tuple[Any, dict[str, Any]]:
    """The package's model with random weights, and its configuration."""
    from moshi.models.lm import LMModel

    width, heads, depth = SIZES[size]
    config = {
        "dim": width, "num_heads": heads, "num_layers": 12, "text_card": 8000, "existing_text_padding_id": 3,
        "n_q": 2 * LEVELS, "dep_q": LEVELS, "card": CARD, "hidden_scale": 4.125, "causal": True, "layer_scale": None,
        "context": CONTEXT, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32",
        "positional_embedding": "rope", "depformer_dim": depth, "depformer_num_heads": 8, "depformer_num_layers": 6,
        "depformer_dim_feedforward": int(4.125 * depth), "depformer_layer_scale": None, "depformer_multi_linear": True,
        "depformer_context": LEVELS, "depformer_max_period": 10000, "depformer_gating": "silu",
        "depformer_pos_emb": "none", "depformer_weights_per_step": True, "delays": [0, 0, *[1] * 7, 0, *[1] * 7],
    }  # fmt: skip
    torch.manual_seed(0)
    return LMModel(device="cpu", dtype=torch.float32, **config).eval(), config


def ours(theirs: Any, config: dict[str, Any], engine: str, weights: str) -> Any:
    """Our model with the same weights."""
    found = kyutai.options(config, "the benchmark")
    codec, words = build_codec(PUBLISHED["mimi"]).eval(), SentencePieces(None, config["text_card"], 3, 0)
    check_codec(codec, LEVELS, CARD, "Mimi")
    model = assembled(recipe_of(found, codec, words, "the benchmark"), codec, words, "the benchmark")
    fill(model.system.stage, kyutai.pairs(found), dict(theirs.state_dict()), "the benchmark")
    model.system.codec = model.system.ear.codec = ToldCodes()
    use_engine(model, engine, weights)
    return model


def sound(codes: np.ndarray) -> np.ndarray:
    """Codes [rows, 8] as frames [rows, 1920]."""
    frames = np.zeros((len(codes), ToldCodes.hop), np.float32)
    frames[:, :LEVELS] = codes / 4096
    return frames


def stepper(model: Any, rows: int) -> Callable[[], object]:
    """A step of ours, its ring full."""
    lockstep, chance = model.duplex_rows(rows), np.random.default_rng(0)
    for row in range(rows):
        lockstep.reset(row, row)
    lockstep.step(sound(chance.integers(0, CARD, (rows, LEVELS))))
    decoder = lockstep.state["stage"]["decoder"]
    for state in (decoder, *(value for value in decoder.values() if isinstance(value, State))):
        state["position"] = state["position"] + CONTEXT  # as if it had heard as many frames: zeros
    return lambda: lockstep.step(sound(chance.integers(0, CARD, (rows, LEVELS))))


def their_stepper(theirs: Any, rows: int) -> Callable[[], object]:
    """A step of the package's (its attention looks at all slots of the ring from the beginning)."""
    from moshi.models.lm import LMGen

    generator, chance = LMGen(theirs), np.random.default_rng(0)
    generator.streaming_forever(rows)
    return lambda: generator.step(torch.from_numpy(chance.integers(0, CARD, (rows, LEVELS, 1))))


def read_a_step(model: Any) -> int:
    """Weights that a step reads: all but tables."""
    stage = model.system.stage
    tables = sum(table.weight.numel() for table in stage.modules() if isinstance(table, nn.Embedding))
    return sum(weight.numel() for weight in stage.parameters()) - tables


def compared(plain: Any, small: Any, steps: int = 60) -> tuple[float, float]:
    """What int8 changes: the share of equal draws after the same past, and nats a token more for what float32 says."""
    draws: list[torch.Tensor] = []
    losses: list[float] = []
    told: list[tuple[torch.Tensor, torch.Tensor]] = []
    draw, at, recording = decoding.sample, 0, True

    def watched(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal at
        ids = draw(logits, *rest)
        if recording:
            told.append((ids, logits))
            return ids
        expected, theirs = told[at]
        at += 1
        draws.append(ids == expected)
        scored = [each.double().log_softmax(-1).gather(1, expected[:, None]) for each in (theirs, logits)]
        losses.append(float((scored[0] - scored[1]).mean()))
        return expected

    decoding.sample = watched
    try:
        for model in (plain, small):
            recording = model is plain
            session, chance = model.duplex(seed=1), np.random.default_rng(2)
            for _ in range(steps):
                session.step(sound(chance.integers(0, CARD, (1, LEVELS)))[0])
    finally:
        decoding.sample = draw
    return float(torch.cat(draws).double().mean()), statistics.fmean(losses)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="conversations in lockstep")
    parser.add_argument("--engines", nargs="+", default=["-".join(each) for each in ENGINES], help="which of ours")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = Table(
        f"{machine()}, medians of {options.rounds}, milliseconds a step",
        ["model", "threads", "rows", "weights, engine", "vivavoce", "a row", "moshi", "times", "target",
         "weights read once"],
    )  # fmt: skip
    engines = [each for each in ENGINES if "-".join(each) in options.engines]
    for size in options.sizes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            theirs, config = peer(size)
            models = {each: ours(theirs, config, *each) for each in engines}
            weights = read_a_step(models[engines[0]])
            for rows in options.rows:
                runs: dict[Any, Callable[[], object]] = {each: stepper(model, rows) for each, model in models.items()}
                runs["memory"] = reading(weights)
                runs["moshi"] = their_stepper(theirs, rows)
                found = interleaved(runs, options.rounds)
                theirs._stop_streaming()
                for engine, kind in engines:
                    target = TARGETS.get((size, kind), "") if engine == "openvino" and rows == 1 else ""
                    bound = found["memory"] / (1 if kind == "float32" else 4)
                    mine, other = found[engine, kind], found["moshi"]
                    table.add(size, threads, rows, f"{kind}, {engine}", f"{mine:.1f}", f"{mine / rows:.1f}",
                              f"{other:.1f}", f"{other / mine:.2f}", target, f"{bound:.1f}")  # fmt: skip
            for kind in ("int8", "int8-dynamic") if threads == options.threads[0] else ():
                pair = [models.get(each) for each in (("torch", "float32"), ("openvino", kind))]
                if all(pair):
                    same, more = compared(*pair)
                    said = f"{same:.1%} of the draws, {more:+.4f} nats a token"
                    table.add(f"{size}, {kind} against float32", "", "", said, "", "", "", "", "", "")
            del models, runs, theirs
            gc.collect()
    table.write(options.output)


if __name__ == "__main__":
    main()
