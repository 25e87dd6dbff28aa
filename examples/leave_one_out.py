"""How well does mini hear a recorded speaker that it was never trained on? Leaves each of FSDD's five out in turn.

python examples/leave_one_out.py --data PACK [--minutes 8] [--out out/leave-one-out] [SPEAKER ...]

Trains only the recipe's phase `listen` (the user's words and the text of the answer), shortened, without the speaker's
recordings; then asks every recording of that speaker. Runs that exist already are taken up, so two terminals can share
the speakers. Prints one line a speaker and writes results.jsonl into each run.
"""

import argparse
import json
import os
from pathlib import Path

import vivavoce
from vivavoce.evaluation import evaluate, task
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe

SPEAKERS = ("george", "lucas", "nicolas", "theo", "yweweler")


def recipe_without(speaker: str, minutes: float):
    """mini's recipe with the phase `listen` alone, which never hears `speaker`."""
    values = read_recipe("mini").model_dump(mode="json", exclude_defaults=True)
    listen = next(phase for phase in values["training"] if phase["name"] == "listen")
    listen |= {"minutes": minutes, "data": listen["data"] | {"leave_out": [speaker]}}
    return read_recipe(values | {"training": [listen]})


def main() -> None:
    """Train, ask, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("speakers", nargs="*", default=SPEAKERS)
    options.add_argument("--data", type=Path, required=True, help="folder of the recorded-speech pack")
    options.add_argument("--minutes", type=float, default=8, help="of training for each speaker")
    options.add_argument("--limit", type=int, default=None, help="at most so many recordings")
    options.add_argument("--out", type=Path, default=Path("out/leave-one-out"))
    chosen = options.parse_args()
    os.environ["VIVAVOCE_TEST_DATA"] = str(chosen.data)
    for speaker in chosen.speakers:
        run = chosen.out / speaker
        train_recipe(recipe_without(speaker, chosen.minutes), run)
        asked = task("digits", groups="digits", speakers=speaker, split="all", judge=False)
        results = evaluate(vivavoce.load(run), asked, chosen.data, limit=chosen.limit)
        (run / "results.jsonl").write_text("".join(json.dumps(result.row()) + "\n" for result in results))
        found = next(result for result in results if result.metric == "digits correct")
        interval = f"{found.low:.1f} to {found.high:.1f}"
        print(f"{speaker}: {found.value:.1f} % ({interval}) of {found.count} digits", flush=True)


if __name__ == "__main__":
    main()
