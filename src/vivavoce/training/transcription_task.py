"""Training tokens by the text that can be read from them: supervised semantic tokens.

CosyVoice (arXiv:2407.05407, section 2.1) and GLM-4-Voice (arXiv:2411.17607, section 2.1) have a recogniser around the
quantizer; what stands behind it serves training only. Here that is a small transformer with a CTC head (Graves et al.
2006) over letters.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.training.codec_task import CodecTask, codebook_use, health

LETTERS = "abcdefghijklmnopqrstuvwxyz' "
BLANK = 0


class TextHead(nn.Module):
    """Quantized frames [B, T, inputs] -> log-probabilities [B, T x stretch, 1 + letters], of a blank first."""

    def __init__(self, inputs: int, letters: int, width: int, layers: int, heads: int, stretch: int):
        super().__init__()
        self.enter, self.stretch = nn.Linear(inputs, width), stretch
        self.body = Transformer(TransformerConfig.classic(layers, width, heads, causal=False, positions="rope"))
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, stretch * (1 + letters))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in frames."""
        y = self.leave(self.norm(self.body(self.enter(x), lengths)))
        return y.unflatten(-1, (self.stretch, -1)).flatten(1, 2).float().log_softmax(-1)


class TranscriptionTask(CodecTask):
    """Whole clips through a codec's encoder and quantizer to their `texts`; its decoder has no part in it.

    texts: of each clip; held_out_texts: of each held-out one. letters: what is told apart, in lower case; others are
    left out. width, layers, heads: of the head; stretch: its steps a token (letters come faster than slow tokens).
    Clips longer than `seconds`, or whose text has more letters than steps, are not learned from. Other options:
    `CodecTask`'s.
    """

    name = "transcription"

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        texts: Sequence[str] = (),
        held_out_texts: Sequence[str] = (),
        letters: str = LETTERS,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        stretch: int = 1,
        seconds: float = 30.0,
        **options: Any,
    ):
        super().__init__(codec, clips, seconds=seconds, **options)
        if stretch < 1 or not letters:
            raise RecipeError(f"stretch {stretch}, letters {letters!r}: at least one of each")
        self.letters, self.stretch = letters, stretch
        self.targets = [self._numbers(text) for text in texts] or [torch.zeros(0, dtype=torch.int64)] * len(clips)
        self.held_out_targets = [self._numbers(text) for text in held_out_texts]
        self.usable = [row for row, clip in enumerate(clips) if self._fits(clip, self.targets[row])]
        if texts and not self.usable:
            raise RecipeError(f"no clip of at most {seconds:g} s has a text that its tokens could tell")
        self.head = TextHead(codec.quantizer.width, len(letters), width, layers, heads, stretch)

    def _numbers(self, text: str) -> Tensor:
        """A text as numbers from 1; 0 is the blank."""
        found = [1 + self.letters.index(letter) for letter in text.lower() if letter in self.letters]
        return torch.tensor(found, dtype=torch.int64)

    def _fits(self, clip: Tensor, target: Tensor) -> bool:
        """Whether CTC has room for the text: a blank stands between two equal letters."""
        needed = len(target) + int((target[1:] == target[:-1]).sum())
        steps = self.codec.frames(clip.shape[-1]) * self.stretch
        return 0 < needed <= steps and clip.shape[-1] <= self.samples_per_crop

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "head": self.head}

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        return {"codec": ("codec", "head")}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """`wave` [B, 1, S] with `lengths` [B] in samples, `letters` [B, L] with `counts` [B]."""
        rows = self.whole_clips(self.usable, step, rank, world)
        return self._collated([(wave, self.targets[clip]) for clip, wave in rows])

    @staticmethod
    def _collated(rows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        waves, targets = [wave[0] for wave, _ in rows], [target for _, target in rows]
        return {
            "wave": nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None],
            "lengths": torch.tensor([len(wave) for wave in waves]),
            "letters": nn.utils.rnn.pad_sequence(targets, batch_first=True),
            "counts": torch.tensor([len(target) for target in targets]),
        }

    def show(self, batch: Any) -> list[str]:
        rate = self.codec.sample_rate
        lines = [f"{len(self.usable)} of {len(self.clips)} clips; {len(batch['wave'])} whole ones, padded"]
        for length, numbers, count in zip(*(batch[name].tolist() for name in ("lengths", "letters", "counts"))):
            said = "".join(self.letters[number - 1] for number in numbers[:count])
            lines.append(f"{length / rate:.2f} s, {self.codec.frames(length)} tokens: '{said}'")
        return lines

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        """Log-probabilities of a batch, how many steps of each row count, and what the quantizer said."""
        latents = self.codec.encode_latents(batch["wave"], batch["lengths"])
        frames = self.codec.frames(batch["lengths"])
        quantized = self.codec.quantize(latents, frames)
        return self.head(quantized.latents, frames), frames * self.stretch, quantized

    def _distance(self, batch: Mapping[str, Tensor], said: Tensor, steps: Tensor) -> Tensor:
        """Nats a letter, the mean over rows."""
        return F.ctc_loss(
            said.transpose(0, 1), batch["letters"], steps, batch["counts"], BLANK, "mean", zero_infinity=True
        )

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        said, steps, quantized = self._read(batch)
        text = self._distance(batch, said, steps)
        loss = text + self.weights["quantizer"] * quantized.loss
        logs = {"text": text.detach(), "quantizer": quantized.loss.detach(), **health(quantized)}
        yield "codec", {"loss": loss, **logs}

    def samples(self, directory: Any, step: int) -> None:
        """No sound is made."""

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over held-out clips with texts: nats a letter, letter errors of the likeliest path, the tokens' health."""
        device = next(self.codec.parameters()).device
        rows = [row for row, target in enumerate(self.held_out_targets) if self._fits(self.held_out[row], target)]
        if not rows:
            return {}
        text, wrong, letters, codes = 0.0, 0, 0, []
        for row in rows:
            batch = self._collated([(self.held_out[row], self.held_out_targets[row])])
            batch = {name: value.to(device) for name, value in batch.items()}
            said, steps, quantized = self._read(batch)
            text += float(self._distance(batch, said, steps)) / len(rows)
            wrong += edits(likeliest(said[0]), self.held_out_targets[row].tolist())
            letters += len(self.held_out_targets[row])
            codes.append(quantized.codes[0])
        used, perplexity = codebook_use(torch.cat(codes, dim=-1))
        return {"text": text, "letter_errors": wrong / letters, "used/0": float(used), "perplexity/0": perplexity}


def likeliest(log_probs: Tensor) -> list[int]:
    """What the likeliest path of log-probabilities [T, V] says: repetitions once, blanks not."""
    path = log_probs.argmax(-1).tolist()
    return [here for before, here in zip([BLANK, *path], path) if here != before and here != BLANK]


def edits(one: Sequence[int], other: Sequence[int]) -> int:
    """Fewest insertions, deletions and replacements from one to the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for count, here in enumerate(one, 1):
        before, row[0] = row[0], count
        for place, there in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (here != there))
    return row[-1]
