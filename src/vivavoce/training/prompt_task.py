"""Training a codec beside prompts: what a prompt tells, the codes need not (PromptCodec, arXiv:2404.02702)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.crops import crop


class PromptTask(CodecTask):
    """A `PromptedCodec` on crops of clips: all that `CodecTask` does, another crop of the same clip as the prompt.

    prompt: seconds of it. apart: weight of how alike codes, voice and prompt may be (cosines): what one of them tells,
    the others need not. Held-out clips are their own prompts.
    """

    name = "prompted"

    def __init__(self, codec: Any, clips: Any, *, prompt: float = 3.0, apart: float = 1.0, **options: Any):
        if not hasattr(codec, "prompted"):
            raise RecipeError("this codec takes no prompt: choose kind promptcodec")
        if prompt <= 0 or apart < 0:
            raise RecipeError(f"prompt {prompt} s, apart {apart}: a length above 0, a weight from 0")
        super().__init__(codec, clips, **options)
        self.prompt, self.apart = round(prompt * codec.sample_rate), apart
        self._given: Tensor | None = None

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Crops `wave` [B, 1, S], and of the same clips `prompt` [B, 1, P]."""
        waves, prompts = [], []
        for number, gain, chance in self._drawn(range(len(self.clips)), step, rank, world):
            clip = self.clips[number]
            waves.append(gain * self._crop(clip, chance))
            prompts.append(gain * crop(clip, self.prompt, chance))
        return {"wave": torch.stack(waves), "prompt": torch.stack(prompts)}

    def show(self, batch: Any) -> list[str]:
        return super().show(batch["wave"])

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        self._given = batch["prompt"]
        try:
            yield from super().updates(batch["wave"], step)
        finally:
            self._given = None

    def _through(self, wave: Tensor) -> tuple[Tensor, Any]:
        made, self.latents, quantized, alike = self.codec.prompted(wave, wave if self._given is None else self._given)
        return made, replace(quantized, loss=quantized.loss + self.apart * alike)
