"""`vivavoce data`: make a corpus by offline synthesis, bring one in, time its words, convert it, count it."""

from typing import Any

import typer

from vivavoce.cli.options import DEVICE, report_skipped

GROUP = typer.Typer(help="Make, import and inspect corpora.", no_args_is_help=True, rich_markup_mode=None)
KINDS = ("digits", "sentences", "dialogues", "turns")


def register(app: typer.Typer) -> None:
    """Add the group `data` to `app`."""
    app.add_typer(GROUP, name="data")


@GROUP.command()
def synth(
    out: str = typer.Argument(..., help="Folder for the audio and its manifest.jsonl; a second call goes on."),
    kind: str = typer.Option(
        "digits", help="digits, sentences (with --texts), dialogues (two channels) or turns (stereo wav and JSON)."
    ),
    texts: str = typer.Option(None, help="Sentences, one a line; or dialogue scripts, a JSON object a line."),
    voices: str = typer.Option("espeak:en-us,espeak:en", help="Voices with commas between; 'data voices' lists them."),
    variants: str = typer.Option("", help="espeak-ng timbres (f1,m3,klatt) for each of its voices; 'all' for every."),
    each: int = typer.Option(1, min=1, help="How often each voice says each text."),
    count: int = typer.Option(10, min=1, help="How many dialogues are made up where no --texts are given."),
    rate: str = typer.Option("1", help="Speaking rate, a ratio or a range LOW:HIGH."),
    pitch: str = typer.Option("1", help="Pitch, a ratio or a range LOW:HIGH."),
    sample_rate: int = typer.Option(None, min=1000, help="Hz of the files; default: the voice's (two channels 24000)."),
    margin: float = typer.Option(None, min=0, max=60, help="Seconds of silence kept around speech; default: as made."),
    augment: str = typer.Option(None, help="YAML file with a recipe of effects: {noise: {snr: [3, 40]}, ...}."),
    name: str = typer.Option(None, help="First part of every id; default: the kind."),
    seed: int = typer.Option(0, min=0, help="Same seed, same corpus."),
    processes: int = typer.Option(2, min=1, help="How many clips are made at a time."),
    source: str = typer.Option("", help="What the rows say of where the clips come from; default: the voice."),
) -> None:
    """Make a spoken corpus or dialogues offline.

    espeak-ng or flite speak; out come flac files and a manifest with the words' times.
    """
    from vivavoce.data import dialogues, spoken, turn_taking
    from vivavoce.data.sums import DIGITS
    from vivavoce.errors import DataError, RequestError

    if kind not in KINDS:
        raise RequestError(f"--kind {kind}: there are {', '.join(KINDS)}")
    if kind == "sentences" and texts is None:
        raise RequestError("--kind sentences: give the sentences with --texts FILE, one a line")
    speakers = _speakers(voices, variants)
    recipe = _recipe(augment)
    if kind == "turns":
        if texts is not None:
            raise RequestError("--kind turns makes up what is said: leave out --texts, or take --kind dialogues")
        shared = {"sample_rate": sample_rate or 24_000, "augment": recipe}
        scripts = turn_taking.question_dialogues(count, speakers, name or kind, seed, **shared)
        made = turn_taking.make(scripts, out, processes, source=source)
    elif kind == "dialogues":
        shared = {"sample_rate": sample_rate or 24_000, "augment": recipe}
        if texts is None:
            scripts = dialogues.generate(count, speakers, name or kind, seed, **shared)
        else:
            voiced = {"voices": tuple(speakers[:2])} if len(speakers) > 1 else {}
            rows = _json_lines(texts)
            scripts = [
                dialogues.parse(row, f"{texts}, line {i + 1}", id=f"{name or kind}/{i:05d}", **shared, **voiced)
                for i, row in enumerate(rows)
            ]
        made = dialogues.make(scripts, out, processes, source=source)
    else:
        sentences = list(DIGITS) if texts is None else _lines(texts)
        spans = (_span("--rate", rate), _span("--pitch", pitch))
        shared = {"sample_rate": sample_rate, "margin": margin, "augment": recipe}
        jobs = spoken.plan(sentences, speakers, name or kind, each, *spans, seed, **shared)
        made = spoken.make(jobs, out, processes, source=source)
    report_skipped(made.failed)
    typer.echo(f"{made.manifest}: {made.clips} clips, {made.fresh} made now, {len(made.failed)} skipped")
    if made.failed and not made.clips:
        raise DataError(f"{out}: none of {len(made.failed)} clips could be made")


@GROUP.command("voices")
def list_voices(
    language: str = typer.Option(None, help="Only this language: en, en-us, fr."),
    variants: bool = typer.Option(False, "--variants", help="List espeak-ng's timbres, which go with any language."),
) -> None:
    """List the voices that can be used on this machine."""
    from vivavoce.data import espeak
    from vivavoce.data.synthesis import voices

    if variants:
        for variant in espeak.variants():
            typer.echo(variant)
        return
    for voice in voices(language):
        typer.echo(f"{voice.name}\t{voice.language}\t{voice.sample_rate} Hz")


@GROUP.command("import")
def bring(
    place: str = typer.Argument(..., help="A manifest, a CutSet or a folder of audio."),
    out: str = typer.Option(..., "-o", "--out", help="The manifest to write (.jsonl)."),
    layout: str = typer.Option("auto", help="auto, manifest, lhotse, folder, librispeech, ljspeech or vctk."),
    license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
    source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
    language: str = typer.Option(None, help="Language for rows that say none."),
    verify: bool = typer.Option(False, "--verify", help="Decode every file to its end, not only its header."),
) -> None:
    """Write the manifest of a corpus on disk.

    The audio stays where it is; bad files are reported, skipped and counted.
    """
    from vivavoce.data.clips import write_manifest
    from vivavoce.data.corpora import check_ids, open_corpus

    corpus = open_corpus(place, layout, license, source, language, verify)
    _require_some(corpus, place)
    check_ids(corpus.clips, place)
    count = write_manifest(out, corpus.clips)
    typer.echo(f"{out}: {count} clips, {corpus.hours:.3f} hours, {len(corpus.skipped)} skipped")


@GROUP.command()
def align(
    place: str = typer.Argument(..., help="A corpus whose clips, or their turns, have texts."),
    out: str = typer.Option(..., "-o", "--out", help="The manifest to write (.jsonl); a second call goes on."),
    by: str = typer.Option("pocketsphinx", help="pocketsphinx, ctc:MODEL (directory or hub id), or textgrid:FOLDER."),
    transcribe: bool = typer.Option(False, "--transcribe", help="Recognise what has no text."),
    license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
    source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
    device: str = DEVICE,
) -> None:
    """Find when each word is said, and write a manifest that says it.

    Turns are aligned one by one, each in its channel. Clips whose text does not fit are reported, skipped and counted.
    """
    from vivavoce.cli.options import placed
    from vivavoce.data.align import align as run
    from vivavoce.data.corpora import open_corpus

    corpus = open_corpus(place, license=license, source=source)
    _require_some(corpus, place)
    made = run(corpus.clips, by, out, transcribe, placed(device)["device"])
    report_skipped(made.skipped)
    skipped = len(corpus.skipped) + len(made.skipped)
    typer.echo(f"{out}: {made.rows} clips, {made.fresh} aligned now, {skipped} skipped")


@GROUP.command()
def phones(
    place: str = typer.Argument(..., help="A corpus of single-channel clips with texts."),
    out: str = typer.Option(..., "-o", "--out", help="The manifest to write (.jsonl)."),
    by: str = typer.Option("pocketsphinx", help="pocketsphinx (English), or textgrid:FOLDER with a tier 'phones'."),
    speakers: str = typer.Option(None, help="Only these speakers, with commas between."),
    license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
    source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
) -> None:
    """Find when each phone is said, and write a manifest that says it.

    Clips without a text, or whose text does not fit, are reported, skipped and counted.
    """
    from vivavoce.data.corpora import open_corpus
    from vivavoce.data.phones import time_phones

    corpus = open_corpus(place, license=license, source=source)
    _require_some(corpus, place)
    names = [name.strip() for name in speakers.split(",")] if speakers else []
    made = time_phones([clip for clip in corpus.clips if not names or clip.speaker in names], by, out)
    report_skipped(made.skipped)
    typer.echo(f"{out}: {made.rows} clips with phones, {len(corpus.skipped) + len(made.skipped)} skipped")


@GROUP.command()
def items(
    place: str = typer.Argument(..., help="A manifest with phones ('phones' finds them)."),
    out: str = typer.Option(..., "-o", "--out", help="The item file to write (.item)."),
    kind: str = typer.Option("triphone", help="triphone (all three phones last) or phoneme (the middle one)."),
) -> None:
    """Write an item file for ABX, in the format of Libri-light and ZeroSpeech."""
    from vivavoce.data.corpora import open_corpus
    from vivavoce.data.phones import abx_tokens
    from vivavoce.errors import DataError
    from vivavoce.evaluation.abx import Token, write_items

    found = [Token(*token) for token in abx_tokens(open_corpus(place).clips, kind)]
    if not found:
        raise DataError(f"{place}: no clip has phones: 'vivavoce data phones' finds them")
    write_items(found, out)
    phones, speakers = ({getattr(token, name) for token in found} for name in ("phone", "speaker"))
    typer.echo(f"{out}: {len(found)} tokens, {len(phones)} phones, {len(speakers)} speakers")


@GROUP.command()
def stereo(
    place: str = typer.Argument(..., help="A corpus of two channels with words' times ('align' finds them)."),
    out: str = typer.Option(..., "-o", "--out", help="Folder for data.jsonl, wav and JSON; a second call goes on."),
    license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
    source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
) -> None:
    """Write dialogues as moshi-finetune takes them.

    Stereo wav, the model's speaker left and the user right, and beside each the words with their times as JSON.
    """
    from vivavoce.data.corpora import open_corpus
    from vivavoce.data.stereo_dialogues import LIST, write_stereo

    corpus = open_corpus(place, license=license, source=source)
    _require_some(corpus, place)
    made = write_stereo(corpus.clips, out)
    report_skipped(made.skipped)
    skipped = len(corpus.skipped) + len(made.skipped)
    typer.echo(f"{out}/{LIST}: {len(made.clips)} dialogues, {made.hours:.3f} hours, {skipped} skipped")


@GROUP.command()
def lhotse(
    place: str = typer.Argument(..., help="A corpus, or a CutSet to turn into a manifest."),
    out: str = typer.Option(..., "-o", "--out", help="A CutSet (.jsonl.gz), or a manifest (.jsonl) from a CutSet."),
    license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
    source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
) -> None:
    """Corpus to lhotse CutSet, or back."""
    from pathlib import Path

    from vivavoce.data.clips import write_manifest
    from vivavoce.data.corpora import detect, open_corpus
    from vivavoce.data.cuts import write_cuts

    corpus = open_corpus(place, license=license, source=source)
    _require_some(corpus, place)
    if detect(Path(place)) == "lhotse" and out.endswith(".jsonl"):
        count = write_manifest(out, corpus.clips)
    else:
        count, bad = write_cuts(corpus.clips, out)
        report_skipped(bad)
        corpus.skipped += bad
    typer.echo(f"{out}: {count} cuts, {corpus.hours:.3f} hours, {len(corpus.skipped)} skipped")


@GROUP.command()
def stats(
    place: str = typer.Argument(..., help="A manifest, a CutSet, a folder of audio or a token store."),
    by: str = typer.Option("source", help="Field that groups the rows: source, license, language, speaker, ..."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Count clips, hours, speakers, licences."""
    import json
    from pathlib import Path

    from vivavoce.data.corpora import Corpus, open_corpus
    from vivavoce.data.stats import clips_of_store
    from vivavoce.data.stats import stats as count

    if Path(place, "store.json").exists():
        corpus = Corpus(list(clips_of_store(place)))
    else:
        corpus = open_corpus(place, license="unknown", source=place)
    _require_some(corpus, place)
    groups = count(corpus.clips, by)
    if as_json:
        rows = [
            {
                **{by: name, "clips": s.clips, "hours": round(s.hours, 5), "shortest": s.shortest},
                **{"longest": s.longest, "with_text": s.with_text, "with_words": s.with_words},
                **{"speakers": len(s.speakers), "languages": sorted(s.languages), "licenses": sorted(s.licenses)},
                **{"channels": sorted(s.channels), "rates": sorted(s.rates)},
            }
            for name, s in groups.items()
        ]
        typer.echo(json.dumps({"groups": rows, "skipped": len(corpus.skipped)}, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{'clips':>7} {'hours':>8} {'seconds':>11} {'text':>7} {'speakers':>8}  languages  {by}; licence")
    for name, s in groups.items():
        span, tongues = f"{s.shortest:.1f}-{s.longest:.1f}", ",".join(sorted(s.languages)) or "-"
        licences = "" if by == "license" else "; " + " / ".join(sorted(s.licenses))
        figures = f"{s.clips:>7} {s.hours:>8.3f} {span:>11} {s.with_text:>7} {len(s.speakers):>8}"
        typer.echo(f"{figures}  {tongues:<9}  {name}{licences}")
    typer.echo(f"{len(corpus.clips)} clips, {corpus.hours:.3f} hours, {len(corpus.skipped)} skipped")


def _require_some(corpus: Any, place: str) -> None:
    """Say what was left out; raise `DataError` where that was all."""
    from vivavoce.errors import DataError

    report_skipped(corpus.skipped)
    if corpus.skipped and not corpus.clips:
        raise DataError(f"{place}: none of its {len(corpus.skipped)} files can be used")


def _speakers(voices: str, variants: str) -> list[str]:
    """The voices asked for, espeak-ng's once for every timbre."""
    from vivavoce.data import espeak
    from vivavoce.errors import RequestError

    timbres = espeak.variants() if variants == "all" else tuple(v.strip() for v in variants.split(",") if v.strip())
    names = []
    for name in (voice.strip() for voice in voices.split(",") if voice.strip()):
        plain = not (name.startswith("espeak:") and timbres and "+" not in name)
        names += [name] if plain else [f"{name}+{timbre}" for timbre in timbres]
    if not names:
        raise RequestError(f"--voices '{voices}': name one or more; 'vivavoce data voices' lists them")
    return names


def _span(option: str, text: str) -> tuple[float, float]:
    from vivavoce.errors import RequestError

    low, _, high = text.partition(":")
    try:
        span = float(low), float(high or low)
    except ValueError:
        span = (0.0, 0.0)
    if not 0 < span[0] <= span[1] < float("inf"):
        raise RequestError(f"{option} {text}: a ratio such as 1.1 or a range such as 0.9:1.2 is expected")
    return span


def _lines(path: str) -> list[str]:
    from pathlib import Path

    from vivavoce.errors import RequestError

    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--texts {path}: cannot be read as text: {error}") from error
    if not lines:
        raise RequestError(f"--texts {path}: the file is empty")
    return lines


def _json_lines(path: str) -> list:
    import json

    from vivavoce.errors import RecipeError

    try:
        return [json.loads(line) for line in _lines(path)]
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: not JSON lines ({error}): a dialogue script is one object a line") from error


def _recipe(path: str | None):
    if path is None:
        return None
    from pathlib import Path

    import yaml

    from vivavoce.data.augment import check
    from vivavoce.errors import RecipeError

    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"--augment {path}: cannot be read as YAML: {error}") from error
    check(recipe, path)
    return recipe
