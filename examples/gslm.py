"""GSLM on two cores: units, a language model of them, and what it knows of speakers that it has never heard.

python examples/gslm.py --data PACK [--out out/gslm] [--folds 3] [--only FOLD] [--size full]

Trains the recipe `gslm-small` once for each fold of the pack's speakers, always without those of the fold, and asks
each model about them (task `unit_likelihood`): how many nats a unit costs it and n-gram models of the same training
units, and whether it finds a recording likelier than one with pieces exchanged. The last table joins all folds: every
speaker has been asked about once, by a model that had not heard them. What is finished is not done again.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

import vivavoce
from vivavoce.data.recorded_tokens import clips_of
from vivavoce.evaluation import task
from vivavoce.evaluation.harness import Scored, collect
from vivavoce.evaluation.report import save, table
from vivavoce.schema import Recipe, read_recipe
from vivavoce.training.recipes import train_recipe


def speaker_folds(recipe: Recipe, pack: Path, folds: int) -> list[list[str]]:
    """The known speakers in `folds` parts of about the same length."""
    seconds: dict[str, float] = defaultdict(float)
    for clip in clips_of(recipe.phase("lm").data.options["corpora"], pack):
        if clip.speaker:
            seconds[clip.speaker] += clip.duration
    parts: list[list[str]] = [[] for _ in range(folds)]
    total = [0.0] * folds
    for speaker in sorted(seconds, key=lambda name: (-seconds[name], name)):
        least = min(range(folds), key=lambda fold: (total[fold], len(parts[fold])))
        parts[least].append(speaker)
        total[least] += seconds[speaker]
    return parts


def recipe_without(speakers: list[str], size: str) -> Recipe:
    """gslm-small, all phases of which leave these speakers out."""
    held_out = {f"training.{phase}.data.held_out": speakers for phase in ("units", "lm")}
    return read_recipe("gslm-small", size, held_out)


def ask(run: Path, data: Path, settings: Mapping[str, object]) -> list[Scored]:
    """All questions about the speakers that the model in `run` has not heard, answered."""
    asked = task("unit_likelihood", **settings)
    scored, failed = collect(vivavoce.load(run), asked, data, run / "evaluation")
    for name, why in failed:
        print(f"left out: {name}: {why}")
    return scored


def main() -> None:
    """Train, ask, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the recorded-speech pack")
    options.add_argument("--out", type=Path, default=Path("out/gslm"))
    options.add_argument("--folds", type=int, default=3, help="parts that the speakers are dealt into")
    options.add_argument("--only", type=int, default=None, help="train only this fold, from 1, and ask nothing")
    options.add_argument("--size", choices=("full", "smoke"), default="full")
    chosen = options.parse_args()
    os.environ["VIVAVOCE_TEST_DATA"] = str(chosen.data)
    # the clips of the smoke size are shorter than sentences
    settings = {"shortest": 1.0} if chosen.size == "smoke" else {}
    parts = speaker_folds(read_recipe("gslm-small", chosen.size), chosen.data, chosen.folds)
    runs = [chosen.out / f"fold-{number}" for number in range(1, len(parts) + 1)]
    for number, (run, speakers) in enumerate(zip(runs, parts), 1):
        if chosen.only in (None, number):
            train_recipe(recipe_without(speakers, chosen.size), run)
    if chosen.only is not None:
        return
    scored = [one for run in runs for one in ask(run, chosen.data, settings)]
    results = task("unit_likelihood", **settings).summarize(scored)
    save(results, chosen.out / "results.jsonl")
    speakers = len({one.item.expected["speaker"] for one in scored})
    Console(width=150).print(table(results, f"{speakers} speakers, each unknown to the model that is asked"))


if __name__ == "__main__":
    main()
