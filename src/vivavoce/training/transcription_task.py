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
from vivavoce.training.codec_task import codebook_use, health
from vivavoce.training.text_task import TextTask

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


class TranscriptionTask(TextTask):
    """Whole clips through a codec's encoder and quantizer to their `texts`, letter by letter.

    letters: what is told apart, in lower case; others are left out. width, layers, heads: of the head; stretch: its
    steps a token (letters come faster than slow tokens). Other options: `TextTask`'s; a text of more letters than steps
    does not fit.
    """

    name = "transcription"

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        letters: str = LETTERS,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        stretch: int = 1,
        **options: Any,
    ):
        if stretch < 1 or not letters:
            raise RecipeError(f"stretch {stretch}, letters {letters!r}: at least one of each")
        self.letters, self.stretch = letters, stretch
        super().__init__(codec, clips, **options)
        self.head = TextHead(codec.quantizer.width, len(letters), width, layers, heads, stretch)

    def numbers(self, text: str) -> Tensor:
        """A text as numbers from 1; 0 is the blank."""
        found = [1 + self.letters.index(letter) for letter in text.lower() if letter in self.letters]
        return torch.tensor(found, dtype=torch.int64)

    def fits(self, frames: int, target: Tensor) -> bool:
        """Whether CTC has room for the text: a blank stands between two equal letters."""
        needed = len(target) + int((target[1:] == target[:-1]).sum())
        return 0 < needed <= frames * self.stretch

    def written(self, numbers: Sequence[int]) -> str:
        return "".join(self.letters[number - 1] for number in numbers)

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        """Log-probabilities of a batch, how many steps of each row count, and what the quantizer said."""
        quantized, frames = self._quantized(batch)
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

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over held-out clips with texts: nats a letter, letter errors of the likeliest path, the tokens' health."""
        batches = self.held_out_batches()
        if not batches:
            return {}
        text, wrong, letters, codes = 0.0, 0, 0, []
        for batch in batches:
            said, steps, quantized = self._read(batch)
            text += float(self._distance(batch, said, steps)) / len(batches)
            wrong += edits(likeliest(said[0]), batch["letters"][0].tolist())
            letters += int(batch["counts"][0])
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
