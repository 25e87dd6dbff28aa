"""How well does mini hear a recorded speaker that it was never trained on? Leaves each of FSDD's five out in turn.

python examples/leave_one_out.py --data PACK [--out out/leave-one-out] [SPEAKER ...]

Trains only what hears and decides (the recipe's phases `hear` and `listen`), shortened: the ear once without any of the
five, then for each speaker ear and decisions with the other four. Asks every recording of the speaker left out, prints
one line a speaker and writes results.jsonl into each run. What is finished already is not done again.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import vivavoce
from vivavoce.evaluation import evaluate, task
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe

SPEAKERS = ("george", "lucas", "nicolas", "theo", "yweweler")


def recipe_without(speaker: str | None, steps: Mapping[str, int]):
    """mini's recipe: `base`, an ear that heard none of the speakers; then `hear` and `listen` without `speaker`."""
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    found = {phase["name"]: phase for phase in values["training"]}

    def phase(name: str, like: str, left_out: Sequence[str], **more):
        rest = {key: value for key, value in found[like].items() if key not in ("minutes", "after", "start_from")}
        return rest | {"name": name, "steps": steps[name], "data": rest["data"] | {"leave_out": list(left_out)}} | more

    phases = [phase("base", "hear", SPEAKERS)]
    if speaker is not None:
        phases += [phase("hear", "hear", [speaker], start_from="base"), phase("listen", "listen", [speaker])]
    return read_recipe(values | {"training": phases})


def main() -> None:
    """Train, ask, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("speakers", nargs="*", default=SPEAKERS)
    options.add_argument("--data", type=Path, required=True, help="folder of the recorded-speech pack")
    options.add_argument("--base", type=int, default=2400, help="steps of the ear without any of the speakers, once")
    options.add_argument("--hear", type=int, default=800, help="steps of the ear for each speaker")
    options.add_argument("--listen", type=int, default=1000, help="steps of ear and decisions for each speaker")
    options.add_argument("--limit", type=int, default=None, help="at most so many recordings")
    options.add_argument("--out", type=Path, default=Path("out/leave-one-out"))
    chosen = options.parse_args()
    os.environ["VIVAVOCE_TEST_DATA"] = str(chosen.data)
    steps = {"base": chosen.base, "hear": chosen.hear, "listen": chosen.listen}
    base = train_recipe(recipe_without(None, steps), chosen.out / "base")
    for speaker in chosen.speakers:
        run = chosen.out / speaker
        if not (run / "checkpoints").exists():
            shutil.copytree(base.checkpoints("base"), run / "checkpoints" / "base")
        train_recipe(recipe_without(speaker, steps), run)
        asked = task("digits", groups="digits", speakers=speaker, split="all", judge=False)
        results = evaluate(vivavoce.load(run), asked, chosen.data, limit=chosen.limit)
        (run / "results.jsonl").write_text("".join(json.dumps(result.row()) + "\n" for result in results))
        found = next(result for result in results if result.metric == "digits correct")
        interval = f"{found.low:.1f} to {found.high:.1f}"
        print(f"{speaker}: {found.value:.1f} % ({interval}) of {found.count} digits", flush=True)


if __name__ == "__main__":
    main()
