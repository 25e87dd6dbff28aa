"""From a recipe's phase to the task and settings that the loop trains: first all that a recipe can get wrong, on
stand-ins for the data, then the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.arguments import arguments_of
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.training.dialogue_plans import aligned_plan, dialogues_plan, stereo_plan
from vivavoce.training.plan import Load, Plan, codec_of, expect, has, not_there, options_of, planned
from vivavoce.training.semantic_plans import language_plan, text_aligned_plan, transcription_plan
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.ssl_plans import objectives
from vivavoce.training.task import Task
from vivavoce.training.token_plans import pattern_plan, preference_plan, store_plan
from vivavoce.training.unit_plans import endings_plan, kmeans_plan, recordings_plan


def settings_for(phase: Phase, overrides: Mapping[str, Any] | None = None) -> PhaseSettings:
    """The loop's settings of a phase of the recipe."""
    for key in ("name", "steps", "minutes", "tokens", "optimizer", "trainable", "start_from"):
        if key in phase.settings:
            raise RecipeError(f"training.{phase.name}.settings.{key}: it stands beside settings: training.NAME.{key}")
    values: dict[str, Any] = {
        "name": phase.name,
        "steps": phase.steps,
        "minutes": phase.minutes,
        "tokens": phase.tokens,
        "optimizer": dict(phase.optimizer),
        "trainable": phase.trainable,
        **phase.settings,
        **(overrides or {}),
    }
    return PhaseSettings.of(values)


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


def _codec_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec on the synthetic voice that the system is to have."""
    where = f"training.{phase.name}.data"
    codec, options = codec_of(phase, model), options_of(where, phase.data.options, "voice")
    voice = expect(where, options, "voice", "a text")

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.answers import voice_clips

        clips = voice_clips(voice, recipe.sample_rate)
        return clips, clips[-3:]

    return _codec_training(phase, codec, load)


def _recordings_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec on recorded speech, and `sentences` of its texts said by each of the synthetic `voices`, heard on
    speakers that it has not learned from. domains: corpus -> of what domain its clips are."""
    where, rate = f"training.{phase.name}.data", recipe.sample_rate
    codec = codec_of(phase, model)
    options = options_of(where, phase.data.options, "corpora", held_out=(), voices=(), sentences=10, domains={})
    corpora, apart, voices = (expect(where, options, name, "a list") for name in ("corpora", "held_out", "voices"))
    domains = expect(where, options, "domains", "a mapping")
    sentences = expect(where, options, "sentences", "a number from 1")

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recordings import excerpts, read_recordings, spoken

        found = read_recordings(corpora, rate, apart, pack, codec.channels)
        made = [wave.repeat(codec.channels, 1) for wave in spoken(found.texts, voices, sentences, rate)]
        said = {"speakers": [*found.speakers, *[""] * len(made)]} if phase.objective.kind == "factors" else {}
        if learns_from_texts(phase):
            said["texts"] = [*found.texts, *[""] * len(made)]
        if domains:
            said["domains"] = [*(domains.get(name, "") for name in found.corpora), *[""] * len(made)]
        return [*found.clips, *made], excerpts(found.held_out, rate, 3 * rate, count=6), said

    return _codec_training(phase, codec, load)


def learns_from_texts(phase: Phase) -> bool:
    """Whether a codec's objective names terms of `text_supervision`."""
    from vivavoce.training.text_supervision import KINDS, TextSupervision

    return not {*(phase.objective.options.get("supervision") or {})}.isdisjoint({*TextSupervision.kinds} - {*KINDS})


def _codec_training(phase: Phase, codec: Any, load: Load) -> Plan:
    """Towards reconstruction, with or without discriminators, of clips and held-out ones, or what else a codec's
    parts are to learn from them. `load`: clips, held-out ones, and perhaps further arguments of the task."""
    from vivavoce.training.code_lm_task import CodeLMTask
    from vivavoce.training.codec_task import CodecTask
    from vivavoce.training.domain_task import DomainTask
    from vivavoce.training.factor_task import FactorTask
    from vivavoce.training.feature_task import FeatureTask
    from vivavoce.training.flow_task import FlowTask
    from vivavoce.training.latent_task import DiffusionTask, LatentTask
    from vivavoce.training.post_filter_task import PostFilterTask
    from vivavoce.training.prompt_task import PromptTask
    from vivavoce.training.told_task import ToldTask
    from vivavoce.training.watermark_task import WatermarkTask

    options = phase.objective.options
    tasks: dict[str, type[CodecTask]] = {"features": FeatureTask, "factors": FactorTask, "flow": FlowTask}
    tasks |= {"latents": LatentTask, "diffusion": DiffusionTask, "post_filter": PostFilterTask, "prompted": PromptTask}
    tasks |= {"watermark": WatermarkTask}
    tasks["code_lm"] = CodeLMTask
    told = DomainTask if phase.data.options.get("domains") else ToldTask if learns_from_texts(phase) else CodecTask
    task = tasks.get(phase.objective.kind, told)

    def make(clips: Any, held_out: Any, about: Mapping[str, Any] | None = None, **more: Any) -> Task:
        where, said = f"training.{phase.name}.objective", {**options, **(about or {}), **more}
        return made(where, task, codec, clips, held_out=held_out, batch=phase.batch, **said)

    def dry(clips: Any, held_out: Any) -> Task:
        return make(clips, held_out, calibrate=False, anew=False)  # nothing to calibrate on, and nothing changes

    plan = planned(phase, dry, ([torch.zeros(1, 1)], ()), load)
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
    options = options_of(where, phase.data.options, voice="flite:slt", leave_out=(), frames=96, scene={})
    name, frames = expect(where, options, "voice", "a text"), expect(where, options, "frames", "a number from 1")
    apart = expect(where, options, "leave_out", "a list")
    said = expect(where, options, "scene", "a mapping")
    scene = Scene(**arguments_of(Scene, error=RecipeError).check(said, f"{where}.scene"))
    encoder: Any = model.system.encoder
    codec = codec_of(phase, model).eval()

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
    has(where, options, "streams")
    streams = tuple(expect(where, options, "streams", "a list"))
    load = _conversations(recipe, phase, model, "voice" in streams)
    del options["streams"]

    def make(train: Any, held_out: Any) -> Task:
        return made(
            where,
            ConversationTask,
            *(phase.name, model.system.encoder, model.system.stage, train, streams, phase.batch),
            loss_weights=phase.loss_weights,
            held_out=held_out,
            texts=model.system.vocabularies,
            **options,
        )

    return planned(phase, make, (not_there, None), load, pack=True)


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

    return planned(phase, make, (not_there, None, ["zero"], ["zero"], 0.0), load, pack=True)


TASKS = {
    ("reconstruction", "speech_synthesis"): _codec_plan,
    ("adversarial", "speech_synthesis"): _codec_plan,
    ("reconstruction", "recordings"): _recordings_plan,
    ("adversarial", "recordings"): _recordings_plan,
    ("features", "recordings"): _recordings_plan,
    ("factors", "recordings"): _recordings_plan,
    ("flow", "recordings"): _recordings_plan,
    ("latents", "recordings"): _recordings_plan,
    ("diffusion", "recordings"): _recordings_plan,
    ("code_lm", "recordings"): _recordings_plan,
    ("post_filter", "recordings"): _recordings_plan,
    ("prompted", "recordings"): _recordings_plan,
    ("watermark", "recordings"): _recordings_plan,
    ("transcription", "recordings"): transcription_plan,
    ("language", "recordings"): language_plan,
    ("text_aligned", "recordings"): text_aligned_plan,
    ("next_token", "digit_conversations"): _conversation_plan,
    ("words", "digit_conversations"): _word_plan,
    ("next_token", "token_patterns"): pattern_plan,
    ("next_token", "token_store"): store_plan,
    ("distill", "token_patterns"): pattern_plan,
    ("distill", "token_store"): store_plan,
    ("preference", "preferences"): preference_plan,
    ("preference", "recordings"): endings_plan,
    ("next_token", "recordings"): recordings_plan,
    ("next_token", "aligned_speech"): aligned_plan,
    ("next_token", "dialogues"): dialogues_plan,
    ("next_token", "stereo_dialogues"): stereo_plan,
    ("distill", "dialogues"): dialogues_plan,
    ("distill", "stereo_dialogues"): stereo_plan,
    ("kmeans", "recordings"): kmeans_plan,
    **objectives(),
}


def default_pack() -> Path | None:
    """The recorded-speech pack: `$VIVAVOCE_TEST_DATA`, else `../shared/data` from here, else None."""
    import os

    for candidate in (os.environ.get("VIVAVOCE_TEST_DATA"), "../shared/data"):
        if candidate and (Path(candidate) / "manifests").is_dir():
            return Path(candidate)
    return None
