"""Checks of a run or model directory: checkpoints, weights, fingerprints, the log, and what the model does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio, read
from vivavoce.audio.loudness import rms_dbfs
from vivavoce.doctor import model as model  # its checks are a run's too
from vivavoce.doctor.findings import Finding, NotChecked, Report, check, examine, fault, look, of_error
from vivavoce.doctor.recipe import finite, tokenizers_of
from vivavoce.errors import CheckpointError, RequestError, VivavoceError
from vivavoce.schema import Recipe, read_recipe
from vivavoce.training import checkpoint
from vivavoce.training.metrics import read_metrics
from vivavoce.training.run_directory import RunDirectory

LEARNING = ("next_token", "distill", "reconstruction", "words")  # objectives whose loss falls when they learn
MANY = 20  # logged steps, before a curve says anything
SECONDS = 6.0  # of a clip that is sent through the model


@dataclass
class LoadedRun:
    """A run or model directory (`run` None: a model by name), its recipe and model (None: they cannot be read, for
    `reasons`), and the clip that is sent through it."""

    name: str
    run: RunDirectory | None
    recipe: Recipe | None
    model: Any
    reasons: list[VivavoceError]
    clip: Path | None = None
    lines: tuple[dict[str, Any], ...] = ()

    def steps(self, phase: str) -> list[Path]:
        """The checkpoints of a phase, the newest last, damaged ones too."""
        folder = self.run.checkpoints(phase) if self.run is not None else Path("none")
        return sorted(folder.glob("step-*")) if folder.is_dir() else []


def look_at_run(name: str, clip: Path | None = None) -> Report:
    """Check a run directory, a model directory or a model by name. Raises `RequestError` for what is none of these."""
    import vivavoce

    run = RunDirectory(name) if Path(name).is_dir() else None
    reasons: list[VivavoceError] = []
    recipe: Recipe | None = None
    loaded: Any = None
    if run is not None:
        try:
            recipe = read_recipe(run.path / "recipe.yaml") if (run.path / "recipe.yaml").exists() else None
        except VivavoceError as error:
            reasons.append(error)
    unfinished = run is not None and not (run.path / "model.safetensors").exists() and bool(run.phases())
    if not reasons and not unfinished:
        try:
            loaded = vivavoce.load(name)
            recipe = recipe or getattr(loaded, "recipe", None)
        except CheckpointError as error:
            reasons.append(error)
        except RequestError as error:
            if run is None or not (run.path / "recipe.yaml").exists():
                raise
            reasons.append(error)
    subject = LoadedRun(name, run, recipe, loaded, reasons, clip)
    if run is not None:
        subject.lines = tuple(read_metrics(run.metrics))
    what = recipe.system if recipe is not None else "no recipe"
    weights = f"{loaded.parameters:,} weights" if loaded is not None else "not loaded"
    facts = [f"{what}: {weights}"]
    if run is not None and recipe is not None:
        for phase in recipe.training:
            if steps := subject.steps(phase.name):
                mine = [line for line in subject.lines if line["phase"] == phase.name]
                last = next((line["loss"] for line in reversed(mine) if finite(line.get("loss"))), None)
                facts.append(f"{phase.name}: {steps[-1].name}" + (f", loss {last:.4g}" if last is not None else ""))
    return examine("run", subject, Report(name, "run", facts))


@check("run")
def loads(run: LoadedRun) -> Iterator[Finding]:
    """A recipe that is damaged; weights that are another recipe's, cut short, or do not fit."""
    for reason in run.reasons:
        yield of_error(reason)


@check("run")
def checkpoints(run: LoadedRun) -> Iterator[Finding]:
    """Checkpoints that are damaged, missing or unfinished."""
    if run.run is None or run.recipe is None or not run.recipe.training or not (run.run.phases() or run.lines):
        raise NotChecked("it has no checkpoints of phases")
    for phase in run.recipe.training:
        steps, folder = run.steps(phase.name), run.run.checkpoints(phase.name)
        whole = []
        for path in steps:
            try:
                checkpoint.load(path)
                whole.append(path)
            except CheckpointError as error:
                yield fault(
                    str(error), "the same `vivavoce train` goes on from the whole one before it", [str(path)]
                )
        if not whole:
            learned = any(line["phase"] == phase.name for line in run.lines)
            said = f"phase '{phase.name}' has no whole checkpoint" + (", though it has trained" if learned else "")
            remedy = f"train it: vivavoce train {run.name} --phase {phase.name}"
            yield (fault if learned or steps else look)(said, remedy, [str(folder)])
        elif not checkpoint.is_finished(folder):
            said = f"phase '{phase.name}' has not come to its end"
            yield look(said, f"vivavoce train {run.name} goes on", [folder.name])


@check("run")
def finite_weights(run: LoadedRun) -> Iterator[Finding]:
    """NaN and infinities in what was saved."""
    found = False
    for name, tensors in _weights(run):
        found = True
        bad = [key for key, each in tensors.items() if each.is_floating_point() and not bool(each.isfinite().all())]
        if bad:
            yield fault(
                "weights that are NaN or infinite",
                "go back to an earlier checkpoint; then a lower learning rate, a longer warm-up",
                (f"{name}: {key}" for key in bad),
            )
    if not found:
        raise NotChecked("it has no weights that can be read")


def _weights(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """The tensors of each file that can be read, and of a model that has none here."""
    from vivavoce.nn.weights import read_safetensors

    files: list[Path] = []
    if run.run is not None:
        files += [run.run.path / "model.safetensors"]
        for phase in run.run.phases():
            files += [*run.run.weights(phase).values(), *run.run.weights(phase, averaged=False).values()]
    elif hasattr(getattr(run.model, "system", None), "state_dict"):
        yield run.name, run.model.system.state_dict()
    for file in dict.fromkeys(files):
        with suppress(CheckpointError):  # `loads` and `checkpoints` say it
            yield str(file), read_safetensors(file)


@check("run")
def stale(run: LoadedRun) -> Iterator[Finding]:
    """Phases that were trained on results of others that are no more."""
    if run.run is None or not run.run.phases():
        raise NotChecked("it has no checkpoints of phases")
    for phase in run.run.phases():
        for other, digest in checkpoint.needs(run.run.checkpoints(phase)).items():
            if other in run.run.phases() and run.run.digest(other) != digest:
                yield fault(
                    f"phase '{phase}' was trained on another result of '{other}' than there is now",
                    f"delete {run.run.checkpoints(phase)} to train it again",
                    [phase],
                )


@check("run")
def stores(run: LoadedRun) -> Iterator[Finding]:
    """Token stores of the recipe that the run's tokenizers have not made."""
    from vivavoce.data.store import TokenStore

    places = {}
    for phase in run.recipe.training if run.recipe is not None else ():
        options = phase.data.options
        place = options.get("path") if phase.data.kind == "token_store" else options.get("store")
        if place is not None and Path(str(place), "store.json").is_file():
            places[phase.name] = str(place)
    if not places or run.model is None:
        raise NotChecked("its recipe names no token store that is here")
    made_by = tokenizers_of(run.model.system)
    for phase_name, place in places.items():
        names = set(TokenStore(place).specs)
        for stream, tokenizer in made_by.items():
            if stream not in names:
                continue
            try:
                TokenStore(place, {stream: tokenizer})
            except VivavoceError as error:
                yield fault(str(error), "tokenize anew with the run's tokenizers", [f"training.{phase_name}: {stream}"])


# -- the log --


def _curves(run: LoadedRun, key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Phase -> steps and finite values of a logged figure, where there are some."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in run.lines:
        if finite(line.get(key)):
            steps, values = found.setdefault(line["phase"], ([], []))
            steps.append(line["step"])
            values.append(line[key])
    return {phase: (np.array(steps), np.array(values)) for phase, (steps, values) in found.items()}


def _logged(run: LoadedRun) -> None:
    if not run.lines:
        raise NotChecked("it has no metrics.jsonl")


@check("run")
def log_lines(run: LoadedRun) -> Iterator[Finding]:
    """Lines of the log that are none: a kill leaves one cut short, more are a damaged file."""
    _logged(run)
    assert run.run is not None
    raw = [line for line in run.run.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lost = len(raw) - len(run.lines)
    if lost > 1:
        said = f"{lost} of {len(raw)} lines of the log cannot be read"
        yield look(said, "curves have gaps there; the weights are not concerned", [str(run.run.metrics)])


@check("run")
def loss_not_a_number(run: LoadedRun) -> Iterator[Finding]:
    """Losses and figures that are NaN or infinite (the log has null for them)."""
    _logged(run)
    bad = [
        f"phase {line['phase']}, step {line['step']}: {key}"
        for line in run.lines
        for key, value in line.items()
        if key not in ("phase", "step") and (value is None or (isinstance(value, float) and not finite(value)))
    ]
    if bad:
        yield fault(
            "figures of the log that are no numbers",
            "lower the learning rate or `clip`, lengthen `warmup`; `--show-batch` prints what was learned there",
            bad,
        )


@check("run")
def loss_does_not_fall(run: LoadedRun) -> Iterator[Finding]:
    """Losses that end where they began, or rise again."""
    _logged(run)
    kinds = {phase.name: phase for phase in run.recipe.training} if run.recipe is not None else {}
    for name, (_, values) in _curves(run, "loss").items():
        phase = kinds.get(name)
        if len(values) < MANY or (phase is not None and phase.objective.kind not in LEARNING):
            continue
        part = max(3, len(values) // 5)
        first, last = float(np.median(values[:part])), float(np.median(values[-part:]))
        least = min(float(np.median(values[i : i + part])) for i in range(0, len(values) - part + 1, max(1, part // 2)))
        tuned = phase is not None and phase.start_from is not None
        if last > first - 0.01 * abs(first):
            said = f"phase '{name}': the loss does not fall: {first:.4g} in the first fifth, {last:.4g} in the last"
            remedy = "a higher or lower rate, another batch; is anything trainable, and what is scored (--show-batch)?"
            yield (look if tuned else fault)(said, remedy, [name])
        elif last > least + 0.3 * abs(first - least):
            said = f"phase '{name}': the loss rises again: {least:.4g} at its best, {last:.4g} at the end"
            yield look(said, "a lower rate, a longer warm-up, or take the earlier checkpoint", [name])


@check("run")
def held_out_rises(run: LoadedRun) -> Iterator[Finding]:
    """Held-out figures that become worse while training goes on: learned by heart."""
    _logged(run)
    for name, (steps, values) in _curves(run, "evaluate/nats").items():
        best = int(values.argmin())
        if len(values) >= 4 and best < len(values) - 2 and values[-1] > 1.05 * values[best] + 0.01:
            said = f"{values[best]:.4g} nats of held-out tokens at step {steps[best]}, {values[-1]:.4g} now"
            yield look(f"phase '{name}': {said}", "more data, dropout, a shorter budget: it learns by heart", [name])


@check("run")
def gradients(run: LoadedRun) -> Iterator[Finding]:
    """Gradients that explode."""
    _logged(run)
    keys = sorted({key for line in run.lines for key in line if key.split("/")[0] == "grad_norm"})
    for key in keys:
        for name, (steps, values) in _curves(run, key).items():
            usual = float(np.median(values))
            if len(values) >= MANY and usual > 0 and (bad := values > 100 * usual).any():
                yield fault(
                    f"phase '{name}': the gradient explodes: its norm is usually {usual:.3g}",
                    "lower the learning rate, lengthen `warmup`; look at the batch of that step (--show-batch)",
                    (f"step {step}: {value:.3g}" for step, value in zip(steps[bad], values[bad])),
                )


# -- what it does --


@check("run")
def copy_synthesis(run: LoadedRun) -> Iterator[Finding]:
    """A clip through the tokens and back: as long, as loud, and nearer to itself than to another piece of it."""
    if run.model is None or "resynth" not in getattr(run.model, "verbs", {}):
        raise NotChecked("it has no verb `resynth`")
    clip = _clip(run)
    back = run.model.resynth(clip)
    audio = getattr(back, "audio", back)
    what = f"{clip.duration:.1f} s"
    if len(audio) != len(clip.resample(audio.sample_rate)):
        yield fault(
            f"resynth gives {len(audio)} samples of {len(clip.resample(audio.sample_rate))}",
            "the codec loses or adds frames at the end: look at its `frames` and `decode(lengths=…)`",
            [what],
        )
    if not np.isfinite(audio.samples).all():
        yield fault("resynth gives NaN", "the codec's weights or its normalisation are broken", [what])
        return
    apart = rms_dbfs(audio) - rms_dbfs(clip)
    if abs(apart) > 10:
        yield fault(
            f"resynth is {abs(apart):.0f} dB {'louder' if apart > 0 else 'softer'} than the clip",
            "the decoder has not learned, or was trained on another level: look at its reconstruction losses",
            [what],
        )
    own, other = _distances(clip, audio)
    if own > 0.85 * other:
        yield fault(
            f"resynth is not recognised: {own:.1f} dB from the clip (log-mel), {other:.1f} dB from another part of it",
            "train the codec longer; is it the codec of these weights, and was it trained on such speech?",
            [what],
        )


def _distances(clip: Audio, audio: Audio) -> tuple[float, float]:
    """Log-mel distances in dB of a resynthesis from its clip, and from the clip turned by half: what chance gives."""
    from vivavoce.evaluation.resynthesis import log_mel_distance

    rate = audio.sample_rate
    wave = clip.resample(rate)
    level = 10 ** ((rms_dbfs(wave) - max(rms_dbfs(audio), -80)) / 20)
    same = Audio(audio.samples * np.float32(level), rate)  # levels are another question
    turned = Audio(np.roll(wave.samples, len(wave) // 2, axis=1), rate)
    return log_mel_distance(wave, same), log_mel_distance(turned, same)


def _clip(run: LoadedRun) -> Audio:
    """A clip to send through: the one that was named, else one of what the recipe's codec learns from."""
    if run.clip is not None:
        return read(run.clip).mono()[:SECONDS]
    rate = run.model.sample_rate
    for phase in run.model.recipe.training:
        options = phase.data.options
        if phase.data.kind == "speech_synthesis" or "voice" in options:
            from vivavoce.data.answers import say

            try:
                samples, _ = say("three plus four is seven", str(options.get("voice", "flite:slt")), rate)
            except VivavoceError as error:
                raise NotChecked(f"no clip of its voice ({error}): name one (--clip)") from error
            return Audio(np.pad(samples, rate // 4)[None], rate)
        if phase.data.kind == "recordings":
            from vivavoce.data.recorded_tokens import clips_of
            from vivavoce.training.assembly import default_pack

            try:
                clips = clips_of(options.get("corpora", ()), default_pack())
                apart = [c for c in clips if c.speaker in options.get("held_out", ())] or clips
                return max(apart[:50], key=lambda c: min(c.duration, SECONDS)).load(rate).mono()[:SECONDS]
            except (VivavoceError, ValueError) as error:
                raise NotChecked(f"no clip of its corpora ({error}): name one (--clip)") from error
    raise NotChecked("its recipe names no recordings: name a clip (--clip)")
