"""From a recipe's phase to the task and settings that the loop trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task


def settings_for(phase: Phase, overrides: Mapping[str, Any] | None = None) -> PhaseSettings:
    """The loop's settings of a phase of the recipe."""
    values: dict[str, Any] = {
        "name": phase.name,
        "steps": phase.steps,
        "minutes": phase.minutes,
        "optimizer": dict(phase.optimizer),
        "trainable": phase.trainable,
        **phase.settings,
        **(overrides or {}),
    }
    return PhaseSettings.of(values)


def task_for(recipe: Recipe, phase: Phase, model: Model, pack: Path | None = None) -> Task:
    """The task of a phase: what it trains in `model`, on which data, towards which objective."""
    maker = TASKS.get((phase.objective.kind, phase.data.kind))
    if maker is None:
        known = ", ".join(f"{objective} on {data}" for objective, data in TASKS)
        raise RecipeError(
            f"training.{phase.name}: objective '{phase.objective.kind}' on data '{phase.data.kind}' is not one that "
            f"this version trains; it trains {known}"
        )
    return maker(recipe, phase, model, pack)


def _codec(phase: Phase, model: Model) -> Any:
    """The codec of the system, for a phase that trains it."""
    codec = getattr(model.system, "codec", None)
    if codec is None:
        raise RecipeError(
            f"training.{phase.name}: this system has no codec to train: interaction.speaks names no stream whose "
            "tokenizer is one; train it by a recipe without stages, and name its directory"
        )
    return codec


def _has(where: str, options: Mapping[str, Any], *names: str) -> None:
    """Raises for an option that the recipe must give and does not."""
    missing = [name for name in names if name not in options]
    if missing:
        raise RecipeError(f"{where}: give {', '.join(missing)}")


def _codec_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """A codec on the synthetic voice that the system is to have."""
    from vivavoce.data.answers import voice_clips
    from vivavoce.training.codec_task import CodecTask

    codec = _codec(phase, model)
    _has(f"training.{phase.name}.data", phase.data.options, "voice")
    clips = voice_clips(phase.data.options["voice"], recipe.sample_rate)
    return CodecTask(codec, clips, held_out=clips[-3:], batch=phase.batch, **phase.objective.options)


def _recordings_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """A codec on recorded speech, heard on speakers that it has not learned from."""
    from vivavoce.data.recordings import excerpts, read_recordings
    from vivavoce.training.codec_task import CodecTask

    codec, options, rate = _codec(phase, model), dict(phase.data.options), recipe.sample_rate
    unknown = sorted(set(options) - {"corpora", "held_out"})
    if unknown or not isinstance(options.get("corpora"), list | tuple):
        raise RecipeError(f"training.{phase.name}.data: give corpora (a list), and held_out speakers; found {options}")
    found = read_recordings(options["corpora"], rate, options.get("held_out", ()), pack)
    held_out = excerpts(found.held_out, rate, 3 * rate, count=6)
    return CodecTask(codec, found.clips, held_out=held_out, batch=phase.batch, **phase.objective.options)


def _conversations(recipe: Recipe, phase: Phase, model: Model, pack: Path | None, voiced: bool) -> tuple[Any, Any]:
    """Simulated digit conversations to train on and held-out ones; the clips come from the recorded-speech pack."""
    from vivavoce.data.answers import Voice
    from vivavoce.data.conversations import Conversations, Scene
    from vivavoce.data.digit_bank import build_bank
    from vivavoce.data.spectral import Backgrounds
    from vivavoce.training.next_token import conversation_seed

    live = recipe.interaction is not None and recipe.interaction.kind == "full_duplex"
    if not live or "ear" not in recipe.encoders or not {"heard", "text", "voice"} <= set(recipe.streams):
        raise RecipeError(
            f"training.{phase.name}: digit_conversations train a full-duplex system with an encoder 'ear' and the "
            "streams heard, text and voice"
        )
    if pack is None:
        raise DataError(f"training.{phase.name} needs the recorded-speech pack: set VIVAVOCE_TEST_DATA to its folder")
    options = dict(phase.data.options)
    name = options.pop("voice", "flite:slt")
    leave_out = options.pop("leave_out", ())
    frames = options.pop("frames", 96)
    scene = made(f"training.{phase.name}.data.scene", Scene, **options.pop("scene", {}))
    encoder: Any = model.system.encoder
    if options:
        raise RecipeError(f"training.{phase.name}.data: unknown {', '.join(options)}")
    codec = _codec(phase, model).eval()
    voice = Voice(name, recipe.sample_rate, codec.codebooks, codec if voiced else None)
    answers = voice.answers()
    words = model.system.vocabularies["text"]
    bins = 1 + int(encoder.front.fft_size * recipe.encoders["ear"].options.get("fmax", 4000) / recipe.sample_rate)
    bank = build_bank(pack, encoder.front, bins, leave_out)
    backgrounds = Backgrounds(encoder.front, bins)
    seed = conversation_seed(0, phase.name)
    train, held_out = (
        Conversations(bank, answers, voice.silence, words.ids, backgrounds, frames=frames, scene=scene, seed=number)
        for number in (seed, seed + 1)
    )
    return train, held_out


def _conversation_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """A full-duplex stage on simulated digit conversations."""
    from vivavoce.training.next_token import ConversationTask

    options = dict(phase.objective.options)
    _has(f"training.{phase.name}.objective", options, "streams")
    streams = tuple(options.pop("streams"))
    train, held_out = _conversations(recipe, phase, model, pack, "voice" in streams)
    return made(
        f"training.{phase.name}.objective",
        ConversationTask,
        *(phase.name, model.system.encoder, model.system.stage, train, streams, phase.batch),
        loss_weights=phase.loss_weights,
        held_out=held_out,
        **options,
    )


def _word_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """An encoder alone, on the words of simulated digit conversations."""
    from vivavoce.training.word_task import WordTask

    train, held_out = _conversations(recipe, phase, model, pack, voiced=False)
    known = list(train.bank.words)
    words = [*known, *train.bank.lone_words()]
    return made(
        f"training.{phase.name}.objective",
        WordTask,
        *(phase.name, model.system.encoder, train, words, known, phase.batch, train.timing.heard),
        held_out=held_out,
        **phase.objective.options,
    )


def _pattern_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """A language model over tokens on a made-up process."""
    from vivavoce.data.token_patterns import TokenPatterns
    from vivavoce.training.token_task import TokenTask

    system = model.system
    streams = {name: (stream.spec, stream.size) for name, stream in system.streams.items()}
    where = f"training.{phase.name}.data"
    patterns, held_out = (made(where, TokenPatterns, streams, **phase.data.options, seed=seed) for seed in (0, 1))
    return TokenTask(
        phase.name,
        system,
        lambda number: patterns.batch(number * phase.batch, phase.batch),
        phase.tasks,
        phase.loss_weights,
        lambda number: held_out.batch(number * 32, 32),
    )


def _store_task(recipe: Recipe, phase: Phase, model: Model, pack: Path | None) -> Task:
    """A language model over tokens on a token store."""
    from vivavoce.data.store import TokenStore
    from vivavoce.data.token_batches import TokenBatches
    from vivavoce.training.token_task import TokenTask, with_ends

    options, system = dict(phase.data.options), model.system
    unknown = sorted(set(options) - {"path", "frames", "seed"})
    if unknown or "path" not in options:
        raise RecipeError(f"training.{phase.name}.data: give path, and frames or seed if needed; found {options}")
    made_by = {name: stream.tokenizer for name, stream in system.streams.items()}
    expect = {name: t for name, t in made_by.items() if getattr(t, "fingerprint", True) is not None}
    store = TokenStore(options["path"], expect)
    batches = TokenBatches(store, options.get("frames", 4096), options.get("seed", 0), phase.batch)

    def cells(number: int) -> Any:
        batch = batches.batch(number)
        return with_ends(system, batch.streams, batch.lengths, str(options["path"]))

    return TokenTask(phase.name, system, cells, phase.tasks, phase.loss_weights)


TASKS = {
    ("reconstruction", "speech_synthesis"): _codec_task,
    ("adversarial", "speech_synthesis"): _codec_task,
    ("reconstruction", "recordings"): _recordings_task,
    ("adversarial", "recordings"): _recordings_task,
    ("next_token", "digit_conversations"): _conversation_task,
    ("words", "digit_conversations"): _word_task,
    ("next_token", "token_patterns"): _pattern_task,
    ("next_token", "token_store"): _store_task,
}


def default_pack() -> Path | None:
    """The recorded-speech pack: `$VIVAVOCE_TEST_DATA`, else `../shared/data` from here, else None."""
    import os

    for candidate in (os.environ.get("VIVAVOCE_TEST_DATA"), "../shared/data"):
        if candidate and (Path(candidate) / "manifests").is_dir():
            return Path(candidate)
    return None
