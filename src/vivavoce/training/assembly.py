"""From a recipe's phase to the task and settings that the loop trains: first all that a recipe can get wrong, on
stand-ins for the data, then the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import DataError, RecipeError, VivavoceError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.arguments import arguments_of
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task

Load = Callable[[Path | None], tuple[Any, ...]]  # the recorded-speech pack, where there is one -> the data of a task


def settings_for(phase: Phase, overrides: Mapping[str, Any] | None = None) -> PhaseSettings:
    """The loop's settings of a phase of the recipe."""
    for key in ("name", "steps", "minutes", "optimizer", "trainable", "start_from"):
        if key in phase.settings:
            raise RecipeError(f"training.{phase.name}.settings.{key}: it stands beside settings: training.NAME.{key}")
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


@dataclass(frozen=True)
class Plan:
    """A phase of which the recipe is right. `task`: as it will be, but without data. `make(pack)`: the task with its
    data. `pack`: whether these come from the recorded-speech pack."""

    task: Task
    make: Callable[[Path | None], Task]
    pack: bool = False


def plan_for(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """Check what a recipe says of a phase that trains `model`: objective, data, tasks, options. No data are read, and
    neither the model nor the state of torch's chance changes. Raises `RecipeError` with the path in the recipe."""
    planner = TASKS.get((phase.objective.kind, phase.data.kind))
    if planner is None:
        known = ", ".join(f"{objective} on {data}" for objective, data in TASKS)
        raise RecipeError(
            f"training.{phase.name}: objective '{phase.objective.kind}' on data '{phase.data.kind}' is not one that "
            f"this version trains; it trains {known}"
        )
    return planner(recipe, phase, model)


def task_for(recipe: Recipe, phase: Phase, model: Model, pack: Path | None = None) -> Task:
    """The task of a phase: what it trains in `model`, on which data, towards which objective."""
    return plan_for(recipe, phase, model).make(pack)


def _plan(phase: Phase, make: Callable[..., Task], stand_in: tuple[Any, ...], load: Load, pack: bool = False) -> Plan:
    """`make(*stand_in)` shows what is wrong with the options before `make(*load(pack))` reads anything."""
    try:
        with torch.random.fork_rng(devices=[]):
            task = make(*stand_in)
    except VivavoceError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        raise RecipeError(f"training.{phase.name}: its task cannot be made of its options: {error}") from error
    return Plan(task, lambda place: make(*load(place)), pack)


def _not_there(number: int) -> Any:
    """Stands for a source of data where none is read."""
    raise RuntimeError(f"row {number} of data that were not loaded")


def _codec(phase: Phase, model: Model) -> Any:
    """The codec of the system, for a phase that trains it."""
    codec = getattr(model.system, "codec", None)
    if codec is None:
        raise RecipeError(
            f"training.{phase.name}: this system has no codec to train: interaction.speaks names no stream whose "
            "tokenizer is one; train it by a recipe without stages, and name its directory"
        )
    return codec


def _options(where: str, said: Mapping[str, Any], *needed: str, **others: Any) -> dict[str, Any]:
    """What a recipe says: all that is `needed`, and the `others` with their values where it is silent, but nothing
    unknown."""
    unknown = [name for name in said if name not in (*needed, *others)]
    if unknown:
        raise RecipeError(f"{where}: unknown {', '.join(unknown)}; there is {', '.join([*needed, *others])}")
    _has(where, said, *needed)
    return {**others, **said}


def _has(where: str, options: Mapping[str, Any], *names: str) -> None:
    """Raises for an option that the recipe must give and does not."""
    missing = [name for name in names if name not in options]
    if missing:
        raise RecipeError(f"{where}: give {', '.join(missing)}")


def _expect(where: str, options: Mapping[str, Any], name: str, kind: str) -> Any:
    """The option, if it is of its kind."""
    value = options[name]
    fits = {
        "a list": isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
        "a text": isinstance(value, str),
        "a mapping": isinstance(value, Mapping),
        "a number": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "a number from 1": isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    }
    if not fits[kind]:
        raise RecipeError(f"{where}: give {name} ({kind}); found {value!r:.60}")
    return value


def _codec_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec on the synthetic voice that the system is to have."""
    where = f"training.{phase.name}.data"
    codec, options = _codec(phase, model), _options(where, phase.data.options, "voice")
    voice = _expect(where, options, "voice", "a text")

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.answers import voice_clips

        clips = voice_clips(voice, recipe.sample_rate)
        return clips, clips[-3:]

    return _codec_training(phase, codec, load)


def _recordings_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec on recorded speech, heard on speakers that it has not learned from."""
    where, rate = f"training.{phase.name}.data", recipe.sample_rate
    codec, options = _codec(phase, model), _options(where, phase.data.options, "corpora", held_out=())
    corpora, apart = (_expect(where, options, name, "a list") for name in ("corpora", "held_out"))

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recordings import excerpts, read_recordings

        found = read_recordings(corpora, rate, apart, pack)
        return found.clips, excerpts(found.held_out, rate, 3 * rate, count=6)

    return _codec_training(phase, codec, load)


def _codec_training(phase: Phase, codec: Any, load: Load) -> Plan:
    """Towards reconstruction, with or without discriminators, of clips and held-out ones."""
    from vivavoce.training.codec_task import CodecTask

    options = phase.objective.options

    def make(clips: Any, held_out: Any, **more: Any) -> Task:
        where, said = f"training.{phase.name}.objective", {**options, **more}
        return made(where, CodecTask, codec, clips, held_out=held_out, batch=phase.batch, **said)

    def dry(clips: Any, held_out: Any) -> Task:
        return make(clips, held_out, calibrate=False)  # there is nothing to calibrate on

    plan = _plan(phase, dry, ([torch.zeros(1, 1)], ()), load)
    return Plan(plan.task, lambda pack: make(*load(pack)))


def _conversations(recipe: Recipe, phase: Phase, model: Model, voiced: bool) -> Load:
    """Simulated digit conversations to train on and held-out ones; the clips come from the recorded-speech pack."""
    from vivavoce.data.conversations import Scene

    live = recipe.interaction is not None and recipe.interaction.kind == "full_duplex"
    if not live or "ear" not in recipe.encoders or not {"heard", "text", "voice"} <= set(recipe.streams):
        raise RecipeError(
            f"training.{phase.name}: digit_conversations train a full-duplex system with an encoder 'ear' and the "
            "streams heard, text and voice"
        )
    where = f"training.{phase.name}.data"
    options = _options(where, phase.data.options, voice="flite:slt", leave_out=(), frames=96, scene={})
    name, frames = _expect(where, options, "voice", "a text"), _expect(where, options, "frames", "a number from 1")
    apart = _expect(where, options, "leave_out", "a list")
    said = _expect(where, options, "scene", "a mapping")
    scene = Scene(**arguments_of(Scene, error=RecipeError).check(said, f"{where}.scene"))
    encoder: Any = model.system.encoder
    codec = _codec(phase, model).eval()

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.answers import Voice
        from vivavoce.data.conversations import Conversations
        from vivavoce.data.digit_bank import build_bank
        from vivavoce.data.spectral import Backgrounds
        from vivavoce.training.next_token import conversation_seed

        pack = needed_pack(phase, pack)
        voice = Voice(name, recipe.sample_rate, codec.codebooks, codec if voiced else None)
        answers = voice.answers()
        words = model.system.vocabularies["text"]
        bins = 1 + int(encoder.front.fft_size * recipe.encoders["ear"].options.get("fmax", 4000) / recipe.sample_rate)
        bank = build_bank(pack, encoder.front, bins, apart)
        backgrounds = Backgrounds(encoder.front, bins)
        seed = conversation_seed(0, phase.name)
        return tuple(
            Conversations(bank, answers, voice.silence, words.ids, backgrounds, frames=frames, scene=scene, seed=number)
            for number in (seed, seed + 1)
        )

    return load


def needed_pack(phase: Phase, pack: Path | None) -> Path:
    """The recorded-speech pack; `DataError` where there is none."""
    if pack is None:
        raise DataError(f"training.{phase.name} needs the recorded-speech pack: set VIVAVOCE_TEST_DATA to its folder")
    return pack


def _conversation_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A full-duplex stage on simulated digit conversations."""
    from vivavoce.training.next_token import ConversationTask

    where, options = f"training.{phase.name}.objective", dict(phase.objective.options)
    _has(where, options, "streams")
    streams = tuple(_expect(where, options, "streams", "a list"))
    load = _conversations(recipe, phase, model, "voice" in streams)
    del options["streams"]

    def make(train: Any, held_out: Any) -> Task:
        return made(
            where,
            ConversationTask,
            *(phase.name, model.system.encoder, model.system.stage, train, streams, phase.batch),
            loss_weights=phase.loss_weights,
            held_out=held_out,
            **options,
        )

    return _plan(phase, make, (_not_there, None), load, pack=True)


def _word_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """An encoder alone, on the words of simulated digit conversations."""
    from vivavoce.training.word_task import WordTask

    conversations = _conversations(recipe, phase, model, voiced=False)

    def make(train: Any, held_out: Any, words: list[str], known: list[str], wait: float) -> Task:
        return made(
            f"training.{phase.name}.objective",
            WordTask,
            *(phase.name, model.system.encoder, train, words, known, phase.batch, wait),
            held_out=held_out,
            **phase.objective.options,
        )

    def load(pack: Path | None) -> tuple[Any, ...]:
        train, held_out = conversations(pack)
        known = list(train.bank.words)
        return train, held_out, [*known, *train.bank.lone_words()], known, train.timing.heard

    return _plan(phase, make, (_not_there, None, ["zero"], ["zero"], 0.0), load, pack=True)


def _pattern_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A language model over tokens on a made-up process."""
    from vivavoce.data.token_patterns import TokenPatterns
    from vivavoce.training.token_task import TokenTask

    system = model.system
    streams = {name: (stream.spec, stream.size) for name, stream in system.streams.items()}

    def make() -> Task:
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

    _options(f"training.{phase.name}.objective", phase.objective.options)
    return _plan(phase, make, (), lambda pack: ())


def _store_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A language model over tokens on a token store."""
    from vivavoce.training.token_task import TokenTask, with_ends

    where, system = f"training.{phase.name}.data", model.system
    options = _options(where, phase.data.options, "path", frames=4096, seed=0)
    path = _expect(where, options, "path", "a text")
    frames, seed = _expect(where, options, "frames", "a number from 1"), _expect(where, options, "seed", "a number")

    def make(cells: Any) -> Task:
        return TokenTask(phase.name, system, cells, phase.tasks, phase.loss_weights)

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.store import TokenStore
        from vivavoce.data.token_batches import TokenBatches

        made_by = {name: stream.tokenizer for name, stream in system.streams.items()}
        expect = {name: t for name, t in made_by.items() if getattr(t, "fingerprint", True) is not None}
        batches = TokenBatches(TokenStore(path, expect), frames, seed, phase.batch)

        def cells(number: int) -> Any:
            batch = batches.batch(number)
            return with_ends(system, batch.streams, batch.lengths, path)

        return (cells,)

    _options(f"training.{phase.name}.objective", phase.objective.options)
    return _plan(phase, make, (_not_there,), load)


TASKS = {
    ("reconstruction", "speech_synthesis"): _codec_plan,
    ("adversarial", "speech_synthesis"): _codec_plan,
    ("reconstruction", "recordings"): _recordings_plan,
    ("adversarial", "recordings"): _recordings_plan,
    ("next_token", "digit_conversations"): _conversation_plan,
    ("words", "digit_conversations"): _word_plan,
    ("next_token", "token_patterns"): _pattern_plan,
    ("next_token", "token_store"): _store_plan,
}


def default_pack() -> Path | None:
    """The recorded-speech pack: `$VIVAVOCE_TEST_DATA`, else `../shared/data` from here, else None."""
    import os

    for candidate in (os.environ.get("VIVAVOCE_TEST_DATA"), "../shared/data"):
        if candidate and (Path(candidate) / "manifests").is_dir():
            return Path(candidate)
    return None
