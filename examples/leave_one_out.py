"""How well does mini hear recorded speakers that it was never trained on? Leaves each of FSDD's five out in turn.

python examples/leave_one_out.py --data PACK [--out out/leave-one-out] [--together] [SPEAKER ...]

Trains only what hears and decides (the recipe's phases `hear` and `listen`), shortened: the ear once without any of the
five, then for each speaker ear and decisions with the other four. With --together all five are left out of one
training: a fifth of the work, and a harder question, since no recorded digit is heard at all. Asks every recording
of a speaker left out, prints one line a speaker and writes results-SPEAKER.jsonl into the run. What is finished already
is not done again.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import vivavoce
from vivavoce.evaluation import evaluate, task
from vivavoce.schema import Recipe, read_recipe
from vivavoce.training.recipes import train_recipe

SPEAKERS = ("george", "lucas", "nicolas", "theo", "yweweler")


def recipe_without(left_out: Sequence[str], steps: Mapping[str, int], phases: Sequence[str]) -> Recipe:
    """mini's recipe with some of the phases `base` (the ear, without any of the five), `hear` and `listen` alone."""
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    found = {phase["name"]: phase for phase in values["training"]}
    made = []
    for name in phases:
        phase = found["hear" if name == "base" else name]
        rest = {key: value for key, value in phase.items() if key not in ("minutes", "after")}
        data = rest["data"] | {"leave_out": list(SPEAKERS if name == "base" else left_out)}
        made.append(rest | {"name": name, "steps": steps[name], "data": data})
        if name == "hear":
            made[-1]["start_from"] = "base"
    return read_recipe(values | {"training": made})


def ask(speaker: str, run: Path, data: Path, limit: int | None) -> None:
    """Every recording of the speaker to the model in `run`."""
    asked = task("digits", groups="digits", speakers=speaker, split="all", judge=False)
    results = evaluate(vivavoce.load(run), asked, data, limit=limit)
    rows = "".join(json.dumps(result.row()) + "\n" for result in results)
    (run / f"results-{speaker}.jsonl").write_text(rows)
    found = next(result for result in results if result.metric == "digits correct")
    print(f"{speaker}: {found.value:.1f} % ({found.low:.1f} to {found.high:.1f}) of {found.count} digits", flush=True)


def main() -> None:
    """Train, ask, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("speakers", nargs="*", default=SPEAKERS)
    options.add_argument("--data", type=Path, required=True, help="folder of the recorded-speech pack")
    options.add_argument("--together", action="store_true", help="one training without any of the five")
    options.add_argument("--base", type=int, default=2400, help="steps of the ear without any of the speakers, once")
    options.add_argument("--hear", type=int, default=800, help="steps of the ear for each speaker")
    options.add_argument("--listen", type=int, default=1000, help="steps of ear and decisions for each speaker")
    options.add_argument("--limit", type=int, default=None, help="at most so many recordings")
    options.add_argument("--out", type=Path, default=Path("out/leave-one-out"))
    chosen = options.parse_args()
    os.environ["VIVAVOCE_TEST_DATA"] = str(chosen.data)
    steps = {"base": chosen.base, "hear": chosen.hear, "listen": chosen.listen}
    base = train_recipe(recipe_without(SPEAKERS, steps, ["base"]), chosen.out / "base")
    if chosen.together:
        run = copied(base.path, chosen.out / "all")
        train_recipe(recipe_without(SPEAKERS, steps, ["base", "listen"]), run)
        for speaker in chosen.speakers:
            ask(speaker, run, chosen.data, chosen.limit)
        return
    for speaker in chosen.speakers:
        run = copied(base.path, chosen.out / speaker)
        train_recipe(recipe_without([speaker], steps, ["base", "hear", "listen"]), run)
        ask(speaker, run, chosen.data, chosen.limit)


def copied(base: Path, run: Path) -> Path:
    """A run that begins with what `base` has trained."""
    if not (run / "checkpoints").exists():
        shutil.copytree(base / "checkpoints" / "base", run / "checkpoints" / "base")
    return run


if __name__ == "__main__":
    main()
