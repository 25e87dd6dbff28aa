"""Tasks in which the tokens of whole clips must tell what is said in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask


class TextTask(CodecTask):
    """Base: whole clips through a codec's encoder and quantizer, and a `head` of the subclass that learns with them;
    the codec's decoder has no part in it. A subclass gives `numbers`, `fits` and `written`.

    texts: of each clip; held_out_texts: of each held-out one. Clips longer than `seconds`, or whose text does not fit,
    are not learned from. Other options: `CodecTask`'s.
    """

    head: nn.Module

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        texts: Sequence[str] = (),
        held_out_texts: Sequence[str] = (),
        seconds: float = 30.0,
        **options: Any,
    ):
        super().__init__(codec, clips, seconds=seconds, **options)
        self.targets = [self.numbers(text) for text in texts] or [torch.zeros(0, dtype=torch.int64)] * len(clips)
        self.held_out_targets = [self.numbers(text) for text in held_out_texts]
        self.usable = [row for row, clip in enumerate(clips) if self._usable(clip, self.targets[row])]
        if texts and not self.usable:
            raise RecipeError(f"no clip of at most {seconds:g} s has a text that its tokens could tell")

    def numbers(self, text: str) -> Tensor:
        """A text as what is to be told, int64 [L]."""
        raise NotImplementedError

    def fits(self, frames: int, target: Tensor) -> bool:
        """Whether so many tokens could tell it."""
        raise NotImplementedError

    def written(self, numbers: Sequence[int]) -> str:
        """What `numbers` makes of a text, to be read."""
        raise NotImplementedError

    def _usable(self, clip: Tensor, target: Tensor) -> bool:
        return clip.shape[-1] <= self.samples_per_crop and self.fits(self.codec.frames(clip.shape[-1]), target)

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "head": self.head}

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        return {"codec": ("codec", "head")}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """`wave` [B, 1, S] with `lengths` [B] in samples, `letters` [B, L] with `counts` [B]."""
        rows = self.whole_clips(self.usable, step, rank, world)
        return self.collated([(wave, self.targets[clip]) for clip, wave in rows])

    @staticmethod
    def collated(rows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """A batch of clips [1, S] and what is to be told of each."""
        waves, targets = [wave[0] for wave, _ in rows], [target for _, target in rows]
        return {
            "wave": nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None],
            "lengths": torch.tensor([len(wave) for wave in waves]),
            "letters": nn.utils.rnn.pad_sequence(targets, batch_first=True),
            "counts": torch.tensor([len(target) for target in targets]),
        }

    def held_out_batches(self) -> list[dict[str, Tensor]]:
        """The held-out clips whose texts could be told, each alone."""
        device = next(self.codec.parameters()).device
        rows = [(clip, target) for clip, target in zip(self.held_out, self.held_out_targets)
                if self._usable(clip, target)]  # fmt: skip
        return [{name: value.to(device) for name, value in self.collated([row]).items()} for row in rows]

    def show(self, batch: Any) -> list[str]:
        rate = self.codec.sample_rate
        lines = [f"{len(self.usable)} of {len(self.clips)} clips; {len(batch['wave'])} whole ones, padded"]
        for length, numbers, count in zip(*(batch[name].tolist() for name in ("lengths", "letters", "counts"))):
            said = self.written(numbers[:count])
            lines.append(f"{length / rate:.2f} s, {self.codec.frames(length)} tokens: '{said}'")
        return lines

    def samples(self, directory: Any, step: int) -> None:
        """No sound is made."""

    def _quantized(self, batch: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
        """What the quantizer said of a batch, and how many tokens each row has [B]."""
        latents = self.codec.encode_latents(batch["wave"], batch["lengths"])
        frames = self.codec.frames(batch["lengths"])
        return self.codec.quantize(latents, frames), frames
