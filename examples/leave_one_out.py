"""How well does mini hear a recorded speaker that it was never trained on? Leaves each of FSDD's five out in turn.

python examples/leave_one_out.py --data PACK [--out out/leave-one-out] [SPEAKER ...]

Trains only the recipe's phase `listen` (the user's words and the text of the answer), shortened: once without any of
the five, then for each speaker a while longer with the other four. Asks every recording of the speaker left out, prints
one line a speaker and writes results.jsonl into each run. What is finished already is not done again.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import vivavoce
from vivavoce.evaluation import evaluate, task
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe

SPEAKERS = ("george", "lucas", "nicolas", "theo", "yweweler")


def recipe_without(speaker: str | None, steps: int, more: int):
    """mini's recipe with `listen` twice: `base` hears none of the speakers, then all but `speaker` are heard."""
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    listen = next(phase for phase in values["training"] if phase["name"] == "listen")
    listen = {key: value for key, value in listen.items() if key not in ("minutes", "after")}
    base = listen | {"name": "base", "steps": steps, "data": listen["data"] | {"leave_out": list(SPEAKERS)}}
    rest = listen | {"steps": more, "start_from": "base", "data": listen["data"] | {"leave_out": [speaker]}}
    return read_recipe(values | {"training": [base] if speaker is None else [base, rest]})


def main() -> None:
    """Train, ask, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("speakers", nargs="*", default=SPEAKERS)
    options.add_argument("--data", type=Path, required=True, help="folder of the recorded-speech pack")
    options.add_argument("--steps", type=int, default=1200, help="without any of the speakers, once")
    options.add_argument("--more", type=int, default=400, help="for each speaker, with the other four")
    options.add_argument("--limit", type=int, default=None, help="at most so many recordings")
    options.add_argument("--out", type=Path, default=Path("out/leave-one-out"))
    chosen = options.parse_args()
    os.environ["VIVAVOCE_TEST_DATA"] = str(chosen.data)
    base = train_recipe(recipe_without(None, chosen.steps, chosen.more), chosen.out / "base")
    for speaker in chosen.speakers:
        run = chosen.out / speaker
        if not (run / "checkpoints").exists():
            shutil.copytree(base.checkpoints("base"), run / "checkpoints" / "base")
        train_recipe(recipe_without(speaker, chosen.steps, chosen.more), run)
        asked = task("digits", groups="digits", speakers=speaker, split="all", judge=False)
        results = evaluate(vivavoce.load(run), asked, chosen.data, limit=chosen.limit)
        (run / "results.jsonl").write_text("".join(json.dumps(result.row()) + "\n" for result in results))
        found = next(result for result in results if result.metric == "digits correct")
        interval = f"{found.low:.1f} to {found.high:.1f}"
        print(f"{speaker}: {found.value:.1f} % ({interval}) of {found.count} digits", flush=True)


if __name__ == "__main__":
    main()
