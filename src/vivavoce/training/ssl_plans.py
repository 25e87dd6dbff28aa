"""Phases of self-supervised pre-training: which objective, on which recordings."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.training.plan import Plan, codec_of, expect, options_of, planned
from vivavoce.training.task import Task
from vivavoce.training.unit_plans import speeds_of

# objective of a phase -> (module, class); data is always `recordings`
OBJECTIVES = {
    "masked_labels": ("vivavoce.training.ssl_masked_labels", "MaskedLabels"),
    "labels_of_two_rates": ("vivavoce.training.ssl_masked_labels", "LabelsOfTwoRates"),
    "masked_contrastive": ("vivavoce.training.ssl_contrastive", "MaskedContrastive"),
    "contrast_and_labels": ("vivavoce.training.ssl_contrastive", "ContrastAndLabels"),
    "future_contrast": ("vivavoce.training.ssl_future", "FutureContrast"),
    "random_projection": ("vivavoce.training.ssl_random_projection", "RandomProjection"),
    "patch_labels": ("vivavoce.training.ssl_patch_labels", "PatchLabels"),
    "patch_tokenizer": ("vivavoce.training.ssl_patch_labels", "PatchTokenizer"),
    "teacher_regression": ("vivavoce.training.ssl_regression", "TeacherRegression"),
    "many_masks": ("vivavoce.training.ssl_regression", "ManyMasks"),
    "utterance_and_frames": ("vivavoce.training.ssl_utterance", "UtteranceAndFrames"),
    "online_clusters": ("vivavoce.training.ssl_clusters", "OnlineClusters"),
    "bootstrap": ("vivavoce.training.ssl_bootstrap", "Bootstrap"),
    "masked_duo": ("vivavoce.training.ssl_duo", "MaskedDuo"),
    "utterance_dino": ("vivavoce.training.ssl_dino", "UtteranceDino"),
    "labels_and_teacher": ("vivavoce.training.ssl_multi", "LabelsAndTeacher"),
    "future_frame": ("vivavoce.training.ssl_reconstruction", "FutureFrame"),
    "coded_frames": ("vivavoce.training.ssl_reconstruction", "CodedFrames"),
    "masked_autoencoder": ("vivavoce.training.ssl_autoencoder", "MaskedAutoencoder"),
    "altered_frames": ("vivavoce.training.ssl_reconstruction", "AlteredFrames"),
    "swapped_clusters": ("vivavoce.training.ssl_spin", "SwappedClusters"),
    "frame_distillation": ("vivavoce.training.ssl_distillation", "FrameDistillation"),
    "masked_flow": ("vivavoce.training.ssl_flow", "MaskedFlow"),
    "clusters_and_flow": ("vivavoce.training.ssl_flow", "ClustersAndFlow"),
    "segment_regression": ("vivavoce.training.ssl_segments", "SegmentRegression"),
}
ROWS = ("seconds", "join", "fresh", "seed")  # options of an objective that are the task's


def pretrain_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """An encoder of units learns from recordings, heard on speakers that it has not learned from."""
    from vivavoce.training.ssl_task import PretrainTask, trunk_of

    where, codec = f"training.{phase.name}", codec_of(phase, model)
    if not hasattr(codec, "units"):
        raise RecipeError(f"{where}: {phase.objective.kind} trains the encoder of units: a tokenizer of kind units")
    trunk = trunk_of(codec, where)
    options = options_of(f"{where}.data", phase.data.options, "corpora", held_out=(), speeds=(1.0,))
    corpora, apart = (expect(f"{where}.data", options, name, "a list") for name in ("corpora", "held_out"))
    speeds = speeds_of(options["speeds"], f"{where}.data")
    module, kind = OBJECTIVES[phase.objective.kind]
    learns: Callable[..., Any] = getattr(import_module(module), kind)
    rows = {name: value for name, value in phase.objective.options.items() if name in ROWS}
    rest = {name: value for name, value in phase.objective.options.items() if name not in ROWS}

    def make(waves: Sequence[Tensor], held_out: Sequence[Tensor]) -> Task:
        objective = made(f"{where}.objective", learns, trunk, **rest)
        return made(
            f"{where}.objective", PretrainTask, phase.name, codec, waves, objective, held_out=held_out,
            batch=phase.batch, **rows,
        )  # fmt: skip

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recorded_tokens import clips_of, split_speakers

        kept, away = split_speakers(clips_of(corpora, pack), apart)
        mine, theirs = (
            [w for w in (torch.from_numpy(c.load(codec.sample_rate).mono().samples) for c in some)
             if codec.frames(w.shape[1]) > 0]
            for some in (kept, away)
        )  # fmt: skip
        return Played(mine, speeds), theirs

    return planned(phase, make, ((), ()), load)


class Played(Sequence[Tensor]):
    """Every wave [1, samples] at several speeds, resampled when it is asked for; the first speed of all comes first."""

    def __init__(self, waves: Sequence[Tensor], speeds: Sequence[float]):
        self.waves, self.speeds = waves, tuple(speeds)
        self.sizes = [round(wave.shape[1] / speed) for speed in self.speeds for wave in waves]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        speed = self.speeds[index // len(self.waves)]
        wave = self.waves[index % len(self.waves)]
        if speed == 1.0:
            return wave
        from vivavoce.audio import resample

        samples = resample(wave.numpy(), round(16000 * speed), 16000)
        found = torch.zeros(1, self.sizes[index])
        size = min(found.shape[1], samples.shape[1])
        found[:, :size] = torch.from_numpy(samples[:, :size])
        return found


def objectives() -> Mapping[tuple[str, str], Any]:
    """What `training.assembly` knows of them: (objective, data) -> planner."""
    return {(name, "recordings"): pretrain_plan for name in OBJECTIVES}
