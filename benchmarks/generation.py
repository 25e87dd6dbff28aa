"""Generation against transformers' `generate`, on the same random weights: units of a Llama-shaped language model, and
frames of a CSM-shaped one.

    python benchmarks/generation.py [--models units csm] [--rows 1 4 16 64] [--rounds 3] [--threads 1 2] [--tokens 48]
                                    [--weights float32 int8] [--output table.md]

`units`: 142 M weights, 12 layers of 1024, as in a unit language model's directory of transformers'. `csm`: 139 M, a
temporal decoder of 6 layers of 768 and a depth decoder of 4 layers of 384, 32 codebooks of 2051, tables of codes
included. Both as users have them: the directory that `save_pretrained` wrote, `vivavoce.load(..., engine=, weights=)`,
the verb `fill` (of CSM without its codec, on both sides), greedy.

One row is a prompt of 32 units (of CSM: words) and `--tokens` units (frames: a quarter as many). Several rows have
prompts of 8 to 56 and answers from a quarter to seven quarters of that; transformers has them padded on the left, and
stops a row at its length (a stopping criterion for each row), as an end token would; its CSM takes none: there all rows
become as long as the longest. Ours and the peer run in one process, interleaved round by round; medians of milliseconds
for each unit or frame that is wanted, prompts included. Beside them stands what reading a step's weights once takes, by
a sum over as much memory in the same run, divided by the mean number of rows (CSM's depth decoder is read for every
level). What float32 says is compared with the peer's tokens; of int8, how often it has the same largest logit behind
the same past, and how much the loss of what float32 says changes.
Needs `pip install --no-deps -r tests/peers.txt` and the extra `openvino`.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Table, interleaved, machine, reading

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import vivavoce
from vivavoce.systems.token_system import Cells

UNITS, SPECIAL = 500, 2
LEVELS, CARD, WORDS, EOT = 32, 2051, 2048, 2047
TARGETS = {"float32": 1.5, "int8": 3.0, "int8-dynamic": 3.0}
ENGINES = (("torch", "float32"), ("openvino", "float32"), ("openvino", "int8"), ("openvino", "int8-dynamic"))


def unit_lm(folder: Path) -> Any:
    """A random LlamaForCausalLM, saved in `folder` as a unit language model. Its special ids are never the largest."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=UNITS + SPECIAL, hidden_size=1024, intermediate_size=2496, num_hidden_layers=12,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=2048, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = random(transformers.LlamaForCausalLM(config))
    model.lm_head.weight[:SPECIAL] = 0
    model.save_pretrained(folder)
    (folder / "tokeniser_config.json").write_text(
        f'{{"num_units": {UNITS}, "pad_token_id": 0, "bos_eos_token_id": 1, "dedup": false}}', encoding="utf-8"
    )
    return model


def csm(folder: Path) -> Any:
    """A random CsmForConditionalGeneration, saved in `folder`."""
    import transformers

    from published_models import mimi_config
    from vivavoce.tokenizers.pieces import SentencePieces

    depth = {
        "num_codebooks": LEVELS, "backbone_hidden_size": 768, "vocab_size": CARD, "hidden_size": 384,
        "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 64,
    }  # fmt: skip
    config = transformers.CsmConfig(
        num_codebooks=LEVELS, vocab_size=CARD, text_vocab_size=WORDS, hidden_size=768, intermediate_size=3072,
        num_hidden_layers=6, num_attention_heads=12, num_key_value_heads=4, head_dim=64,
        codebook_pad_token_id=CARD - 1, codebook_eos_token_id=0, audio_token_id=EOT - 1, audio_eos_token_id=EOT,
        bos_token_id=1, pad_token_id=EOT - 2, tie_codebooks_embeddings=True, depth_decoder_config=depth,
        codec_config=mimi_config(CARD - 3, LEVELS),
    )  # fmt: skip
    model = random(transformers.CsmForConditionalGeneration(config))
    model.save_pretrained(folder)
    SentencePieces().save(folder / "tokenizer.model")
    return model


@torch.no_grad()
def random(model: Any) -> Any:
    """Weights such that no two logits are nearly equal."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and not name.startswith("codec_model"):
            weight.normal_(std=weight.shape[-1] ** -0.5)
    return model.eval()


class Silence:
    """In place of a codec, which is not what is measured."""

    def __init__(self, codec: Any):
        self.sample_rate, self.hop = codec.sample_rate, codec.hop

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, levels, T] -> nothing."""
        return torch.zeros(len(codes), 1, 0)


def ours(kind: str, folder: Path, engine: str, weights: str) -> Any:
    """The directory as a model, greedy and without a codec."""
    model = vivavoce.load(folder, engine=engine, weights=weights)
    model.system.sampling.clear()
    if kind == "csm":
        voice = model.system.streams["voice"]
        model.system.streams["voice"] = replace(voice, tokenizer=Silence(voice.tokenizer))
    return model


Rows = tuple[list[np.ndarray], list[int]]  # prompts, and how much is wanted behind each


def rows_of(kind: str, count: int, tokens: int) -> Rows:
    """Prompts and lengths of `count` rows, mixed where there are several."""
    chance = np.random.default_rng(count)
    tokens = max(2, tokens // (4 if kind == "csm" else 1))
    prompts = [32] if count == 1 else chance.permutation(np.linspace(8, 56, count).round().astype(int)).tolist()
    wanted = [tokens] if count == 1 else chance.permutation(np.linspace(tokens / 4, 7 * tokens / 4, count).round())
    size = UNITS if kind == "units" else EOT - 2
    return [chance.integers(3, size, n) for n in prompts], [int(n) for n in wanted]


def filler(kind: str, model: Any, rows: Rows) -> Callable[[], list[np.ndarray]]:
    """Ours: what is said behind every prompt, [levels, T] each."""
    prompts, wanted = rows
    if kind == "csm":
        items = [{"text": prompt.tolist()} for prompt in prompts]
        return lambda: [found["voice"] for found in model.fill("speak", items, length=wanted)]
    items = [{"units": prompt} for prompt in prompts]
    sizes = [len(prompt) for prompt in prompts]
    length = [size + more for size, more in zip(sizes, wanted)]

    def run() -> list[np.ndarray]:
        found = model.fill("continue", items, length=length)
        return [each["units"][:, size:] for each, size in zip(found, sizes)]

    return run


def their_filler(kind: str, model: Any, rows: Rows) -> Callable[[], list[np.ndarray]]:
    """transformers': the same."""
    import transformers

    prompts, wanted = rows
    begin, offset = ([1], SPECIAL) if kind == "units" else ([], 0)
    ids = [[*begin, *(prompt + offset)] for prompt in prompts]
    longest = max(len(each) for each in ids)
    inputs = torch.tensor([[0] * (longest - len(each)) + each for each in ids])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in ids])
    ends = torch.tensor(wanted)
    told: dict[str, Any] = {"input_ids": inputs, "attention_mask": mask, "max_new_tokens": max(wanted)}
    said = [0]

    class OwnLength(transformers.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            said[0] += 1
            return said[0] >= ends

    def run() -> list[np.ndarray]:
        said[0] = 0
        more = {"stopping_criteria": [OwnLength()]} if len(wanted) > 1 and kind == "units" else {}
        if kind == "csm":
            found = model.generate(**told, **more, do_sample=False, depth_decoder_do_sample=False)
            return [row[:n].T.numpy() for row, n in zip(found, wanted)]
        found = model.generate(**told, **more, do_sample=False)[:, longest:]
        return [(row[None, :n] - SPECIAL).numpy() for row, n in zip(found, wanted)]

    return run


def read_a_step(kind: str, model: Any) -> int:
    """Weights that a step reads: all but tables; of CSM's depth decoder, for every level behind the first."""
    stage = model.system.stage
    total = sum(weight.numel() for weight in stage.parameters())
    total -= sum(table.weight.numel() for table in stage.modules() if isinstance(table, torch.nn.Embedding))
    if kind == "csm":
        head = stage.head("voice")
        again = sum(weight.numel() for part in (head.decoder, head.enter) for weight in part.parameters())
        total += (LEVELS - 2) * again
    return total


@torch.inference_mode()
def compared(kind: str, plain: Any, small: Any, rows: Rows, said: Sequence[np.ndarray]) -> tuple[float, float]:
    """Behind the same past: the share of equal largest logits, and nats a token more for what float32 said."""
    name, task = ("voice", "speak") if kind == "csm" else ("units", "continue")
    same, more = [], []
    for prompt, own in zip(rows[0], said):
        before = {"text": torch.from_numpy(prompt)[None, None]} if kind == "csm" else {}
        whole = own if kind == "csm" else np.concatenate([prompt[None], own], axis=1)
        values = {**before, name: torch.from_numpy(whole)[None]}
        cells = Cells(values, {each: torch.tensor([value.shape[2]]) for each, value in values.items()})
        both = [model.system(cells, task)[name] for model in (plain, small)]
        first = len(prompt)
        for level in range(len(both[0].logits)):
            theirs, mine = (found.logits[level][0, first:].double() for found in both)
            target = both[0].targets[0, first : first + len(theirs), level]
            there = (target >= 0) & both[0].loss[0, first:, level]
            same.append((theirs.argmax(-1) == mine.argmax(-1))[there])
            scored = [each.log_softmax(-1).gather(1, target.clamp(min=0)[:, None])[:, 0] for each in (theirs, mine)]
            more.append((scored[0] - scored[1])[there])
    return float(torch.cat(same).double().mean()), float(torch.cat(more).mean())


def equal(said: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str:
    """How much of what is said is the peer's."""
    shapes = all(a.shape == b.shape for a, b in zip(said, expected, strict=True))
    if shapes and all(np.array_equal(a, b) for a, b in zip(said, expected)):
        return "equal"
    rows = sum(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(said, expected))
    return f"{rows} of {len(said)} rows equal"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["units", "csm"], choices=["units", "csm"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=48, help="units behind a prompt (frames: a quarter)")
    parser.add_argument("--engines", nargs="+", default=[f"{a}-{b}" for a, b in ENGINES], help="which of ours")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = Table(
        f"{machine()}, medians of {options.rounds}, milliseconds a unit or frame",
        ["model", "rows", "threads", "weights, engine", "vivavoce", "transformers", "times", "target", "greedy tokens",
         "weights read once"],
    )  # fmt: skip
    for kind in options.models:
        for threads in options.threads:
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                theirs = {"units": unit_lm, "csm": csm}[kind](Path(folder))
                models = {
                    each: ours(kind, Path(folder), *each) for each in ENGINES if "-".join(each) in options.engines
                }
            weights = read_a_step(kind, next(iter(models.values())))
            for count in options.rows:
                rows = rows_of(kind, count, options.tokens)
                runs: dict[Any, Callable[[], Any]] = {
                    each: filler(kind, model, rows) for each, model in models.items()
                }
                peer = runs["transformers"] = their_filler(kind, theirs, rows)
                runs["memory"] = reading(weights)
                expected = peer()
                said = {each: runs[each]() for each in models}
                found = interleaved(runs, options.rounds, warm=0)
                wanted, steps = sum(rows[1]), max(rows[1])
                for each in models:
                    engine, kind_of = each
                    bound = found["memory"] * steps / wanted / (1 if kind_of == "float32" else 4)
                    target = (TARGETS[kind_of] if count == 1 else 1.0) if engine == "openvino" else ""
                    told = equal(said[each], expected) if kind_of == "float32" else ""
                    table.add(
                        kind, count, threads, f"{kind_of}, {engine}", f"{found[each] / wanted:.1f}",
                        f"{found['transformers'] / wanted:.1f}", f"{found['transformers'] / found[each]:.2f}", target,
                        told, f"{bound:.1f}",
                    )  # fmt: skip
                if count == 1 and {("torch", "float32"), ("openvino", "int8")} <= set(models):
                    same, more = compared(kind, models["torch", "float32"], models["openvino", "int8"], rows, expected)
                    table.add(f"{kind}, int8 against float32", "", "", "",
                              f"{same:.1%} equal, {more:+.4f} nats a token", "", "", "", "", "")  # fmt: skip
            del models, theirs, runs, peer
            gc.collect()
    table.write(options.output)


if __name__ == "__main__":
    main()
