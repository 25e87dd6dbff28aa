"""Training tokens by what a language model that stays as it is reads in them, and by the mel frames that they tell.

Source: Baichuan-Audio (arXiv:2502.17239, section 3.1): behind the residual quantizer, a mel decoder gives a coarse and
a refined spectrum, and a pretrained language model, told the quantized frames, must say the transcript.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.hub import local_place
from vivavoce.lm.pretrained import load_text_lm
from vivavoce.lm.text_lm import TextLM
from vivavoce.nn.convnext_stack import convnext_stack
from vivavoce.nn.convolution import ConvTranspose
from vivavoce.nn.streaming import Chain, join_rows, take_frames, valid
from vivavoce.nn.transformer import TransformerConfig
from vivavoce.pretrained import FILES
from vivavoce.tokenizers.registry import build_tokenizer
from vivavoce.training.codec_task import codebooks_use, health
from vivavoce.training.task import step_seed
from vivavoce.training.text_task import TextTask

SPELLING = "tokenizer.json"


def language_model(llm: str | Mapping[str, Any], text: Mapping[str, Any] | None) -> tuple[TextLM, Any, int]:
    """A language model, the tokenizer of its text, and the id that ends a text.

    llm: directory or hub id of a published one, whose own `tokenizer.json` is read unless `text` names another
    tokenizer; or the sizes of an untrained one, for trials, which needs a `text`. Raises `RecipeError`.
    """
    if not isinstance(llm, str):
        if text is None:
            raise RecipeError("text: a language model of sizes alone needs a tokenizer of text, sentencepiece say")
        pieces = build_tokenizer(text)
        return TextLM(TransformerConfig.of(llm, "llm"), len(pieces) + 1), pieces, len(pieces)
    folder = Path(local_place(llm, "text LM", [*FILES, SPELLING]))
    model = load_text_lm(folder)
    pieces = build_tokenizer(text or {"kind": "tokenizer_json", "path": str(folder / SPELLING)})
    end = (model.source or {}).get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    if len(pieces) > model.vocabulary or not isinstance(end, int) or not 0 <= end < model.vocabulary:
        raise RecipeError(f"llm '{llm}': {model.vocabulary} ids, of which {end!r} ends a text, for a tokenizer of "
                          f"{len(pieces)}: give the tokenizer that belongs to it")  # fmt: skip
    return model, pieces, end


class Readers(nn.Module):
    """What learns behind the quantizer: a map of quantized frames [B, T, inputs] to the width of a language model, and
    a mel decoder that gives `ratio` frames for each, coarse ones first, then these refined."""

    def __init__(self, inputs: int, words: int, mels: int, ratio: int, width: int, layers: int):
        super().__init__()
        self.enter, self.ratio = nn.Linear(inputs, words), ratio
        up = ConvTranspose(inputs, width, 2 * ratio, ratio)
        self.coarse = Chain(up, *convnext_stack(width, width, 4 * width, layers, mels))
        self.fine = Chain(*convnext_stack(mels, width, 4 * width, layers, mels))

    def mel(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Quantized frames, of which lengths [B] are valid -> mel frames [B, T x ratio, mels], coarse and refined."""
        coarse = self.coarse(x, lengths)
        return coarse, coarse + self.fine(coarse, lengths * self.ratio)


class LanguageTask(TextTask):
    """Whole clips through a codec's encoder and quantizer to what a frozen language model says of them, and to their
    mel frames.

    llm, text: as `language_model` takes them. language: weight of the model's nats a token; mel and quantizer: those of
    `weights`; the mel distance is the sum of mean absolute and mean squared differences, of the coarse and the refined
    frames. width, layers: of the mel decoder's ConvNeXt blocks. Other options: `TextTask`'s.
    """

    name = "language"
    head: Readers

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        llm: str | Mapping[str, Any],
        text: Mapping[str, Any] | None = None,
        language: float = 1.0,
        width: int = 512,
        layers: int = 4,
        seed: int = 0,
        **options: Any,
    ):
        if not hasattr(codec, "to_mel") or not hasattr(codec, "mel"):
            raise RecipeError("this codec has no mel frames of its own for its tokens to tell")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(seed, "llm"))
            self.llm, self.pieces, self.end = language_model(llm, text)
            flow = codec.to_mel.config
            self.head = Readers(codec.quantizer.width, self.llm.decoder.width, flow.mels, flow.ratio, width, layers)
        self.llm.requires_grad_(False).eval()
        self.language = language
        super().__init__(codec, clips, seed=seed, **options)

    def numbers(self, text: str) -> Tensor:
        """Ids of a text, then the one that ends it; none of a text of which the tokenizer knows nothing."""
        found = self.pieces.encode(text)
        return torch.tensor([*found, self.end] if found else [], dtype=torch.int64)

    def fits(self, frames: int, target: Tensor) -> bool:
        """Whatever a model that reads has room for."""
        return len(target) > 0

    def written(self, numbers: Sequence[int]) -> str:
        return self.pieces.text(list(numbers)[:-1]).strip()

    def nats(self, quantized: Tensor, frames: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
        """Of each id [B, L], of which counts [B] are valid, behind quantized frames [B, T, D], of which frames [B] are;
        0 beyond them: [B, L]."""
        told = [(self.head.enter(quantized), frames), (self.llm.embed(ids), counts)]
        columns, sizes = join_rows(told)
        before = frames[:, None] - 1 + torch.arange(ids.shape[1], device=ids.device)
        hidden = take_frames(self.llm.decoder(columns, sizes), before.clamp(max=columns.shape[1] - 1))
        found = F.cross_entropy(self.llm.logits(hidden).transpose(1, 2).float(), ids, reduction="none")
        return found * valid(counts, ids.shape[1])

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        """Language and mel loss of a batch, and what the quantizer said."""
        self.llm.to(batch["wave"].device)
        quantized, frames = self._quantized(batch)
        nats = self.nats(quantized.latents, frames, batch["letters"], batch["counts"])
        mel = self.codec.mel(batch["wave"])
        inside = valid(frames * self.head.ratio, mel.shape[1])[..., None]
        apart = [(made[:, : mel.shape[1]] - mel) * inside for made in self.head.mel(quantized.latents, frames)]
        size = (inside.sum() * mel.shape[2]).clamp(min=1)
        distance = torch.stack([(each.abs() + each.square()).sum() / size for each in apart]).sum()
        return {"language": nats.sum() / batch["counts"].sum(), "mel": distance}, quantized

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        losses, quantized = self.losses(batch)
        loss = self.language * losses["language"] + self.weights["mel"] * losses["mel"]
        logs = {**{name: value.detach() for name, value in losses.items()}, "quantizer": quantized.loss.detach()}
        yield "codec", {"loss": loss + self.weights["quantizer"] * quantized.loss, **logs, **health(quantized)}

    @torch.no_grad()
    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over held-out clips with texts: nats an id, the mel distance, the tokens' health."""
        batches, figures, codes = self.held_out_batches(), {"language": 0.0, "mel": 0.0}, []
        for batch in batches:
            losses, quantized = self.losses(batch)
            for name, value in losses.items():
                figures[name] += float(value) / len(batches)
            codes.append(quantized.codes[0])
        return figures | codebooks_use(torch.cat(codes, dim=-1)) if batches else {}
