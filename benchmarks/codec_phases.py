"""What each phase of a codec's training gives on speakers that it never heard: STOI, PESQ, log-mel distance, paired.

    python benchmarks/codec_phases.py RUN:reconstruction RUN:adversarial [OTHER:PHASE …] [--data PACK] [--examples DIR]

The first is what the others are compared with, clip by clip. Speakers: those that the recipe holds out, and those of
the recorded-speech pack's other sources. Intervals are bootstrap percentiles over whole speakers, since clips of one
are not independent (over clips where a source has one speaker). `--examples` writes a few clips as each phase gives
them.
"""

import argparse
import math
from pathlib import Path

import torch

from vivavoce.audio import write
from vivavoce.data.clips import read_manifest
from vivavoce.evaluation.harness import Item
from vivavoce.evaluation.report import number
from vivavoce.evaluation.resynthesis import Resynthesis
from vivavoce.evaluation.statistics import Estimate, estimate
from vivavoce.schema import Recipe, read_recipe
from vivavoce.systems import Model
from vivavoce.training import RunDirectory
from vivavoce.training.assembly import default_pack
from vivavoce.training.recipes import trained_model

OTHER_SOURCES = ("vctk", "ljspeech", "an4", "pocketsphinx_test")
METRICS = (("stoi", "STOI", True), ("pesq", "PESQ, wideband", True), ("log_mel", "log-mel distance, dB", False))
Scores = dict[str, dict[str, float]]


def model_of(place: str) -> Model:
    """`RUN:PHASE` as a model: what all phases up to that one have made."""
    run, _, phase = place.rpartition(":")
    recipe = read_recipe(Path(run) / "recipe.yaml")
    names = [each.name for each in recipe.training]
    return trained_model(recipe, RunDirectory(run), names[: names.index(phase) + 1])


def unseen(recipe: Recipe, pack: Path) -> dict[Item, str]:
    """Clips of speakers that no phase learns from -> speaker; the group is the source."""
    data = recipe.training[0].data.options
    found = {}
    for name in (*data["corpora"], *OTHER_SOURCES):
        for clip in read_manifest(pack / "manifests" / f"{name}.jsonl"):
            if name in OTHER_SOURCES or clip.speaker in data["held_out"]:
                found[Item(clip.id, clip.path, group=name)] = clip.speaker or clip.id
    return found


def scores(model: Model, items: list[Item], task: Resynthesis, examples: Path | None, label: str) -> Scores:
    """Clip -> its figures; every twentieth clip is kept as an example."""
    found = {}
    for index, (item, artefact) in enumerate(task.answers(model, items)):
        found[item.id] = task.score(item, artefact)
        if examples is not None and index % 20 == 10:
            name = item.id.replace("/", "-")
            write(examples / f"{name}-{label}.flac", artefact["audio"])
            write(examples / f"{name}-original.flac", task._reference(item))
    return found


def told(found: Estimate, sign: bool = False) -> str:
    """`0.83 (0.82 to 0.85)`."""
    low, high = number(found.low), number(found.high)
    return f"{'+' if sign and found.value > 0 else ''}{number(found.value)} ({low} to {high})"


def table(places: list[str], every: list[Scores], speakers: dict[str, str], groups: dict[str, str]) -> str:
    """Markdown: all clips and each source, the phases beside each other, differences from the first."""
    heads = [f"{place.rpartition(':')[2]} ({place.rpartition(':')[0]})" for place in places]
    lines = [f"| | clips, speakers | {' | '.join(heads)} | {' | '.join(f'{h} - first' for h in heads[1:])} |"]
    lines.append("|---|" + "---|" * (2 * len(places)))
    for key, title, _ in METRICS:
        for group in ("", *dict.fromkeys(groups.values())):
            kept = [
                clip
                for clip in speakers
                if group in ("", groups[clip]) and not any(math.isnan(found[clip][key]) for found in every)
            ]
            people = [speakers[clip] for clip in kept]
            clusters = people if len(set(people)) > 1 else None  # of one speaker, clips are drawn
            values = [[found[clip][key] for clip in kept] for found in every]
            cells = [told(estimate(v, clusters=clusters)) for v in values]
            cells += [
                told(estimate([a - b for a, b in zip(v, values[0])], clusters=clusters), sign=True) for v in values[1:]
            ]
            row = (f"{title}: {group or 'all'}", f"{len(kept)}, {len(set(people))}", *cells)
            lines.append(f"| {' | '.join(row)} |")
    better = [
        sum((found[clip]["pesq"] > every[0][clip]["pesq"]) for clip in speakers) / len(speakers) for found in every[1:]
    ]
    lines.append(f"\nClips with a higher PESQ than in the first: {', '.join(f'{100 * b:.0f} %' for b in better)}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", metavar="RUN:PHASE")
    parser.add_argument("--data", type=Path, default=default_pack())
    parser.add_argument("--seconds", type=float, default=8.0, help="of each clip")
    parser.add_argument("--every", type=int, default=1, help="only every so many clips")
    parser.add_argument("--examples", type=Path)
    options = parser.parse_args()
    if options.examples is not None:
        options.examples.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    models = [model_of(place) for place in options.places]
    found = dict(list(unseen(models[0].recipe, options.data).items())[:: options.every])
    task = Resynthesis(seconds=options.seconds)
    every = [
        scores(model, list(found), task, options.examples, place.rpartition(":")[2])
        for model, place in zip(models, options.places)
    ]
    bits = number(models[0].system.codec.bits_per_second)
    print(f"{bits} bit/s, {len(found)} clips of at most {options.seconds} s\n")
    speakers = {item.id: speaker for item, speaker in found.items()}
    print(table(options.places, every, speakers, {item.id: item.group for item in found}))


if __name__ == "__main__":
    main()
