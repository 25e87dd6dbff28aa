"""Speech tokens aligned to text: a set of codes for each token of the transcript, and the way back to speech (TASTE).

Source: TASTE (arXiv:2504.07053; taste_speech/modeling_taste.py and STAGE1_TRAIN of mtkresearch/TASTE-SpokenLM). Queries
of the text take from a frozen encoder's frames what belongs to each token; the vectors, the same for all tokens of a
word, go through a residual quantizer. A decoder says the units of a supervised semantic codec from text and vectors,
and that codec makes sound of them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.feature_codec import encoder_of
from vivavoce.codecs.options import plain
from vivavoce.codecs.semantic import SemanticCodec
from vivavoce.encoders.text_queries import averaged
from vivavoce.errors import RequestError
from vivavoce.nn.resampling import resampling
from vivavoce.nn.still import KeepsStill
from vivavoce.nn.streaming import check_lengths, lengths_of, valid
from vivavoce.quantizers import Quantized, build_quantizer
from vivavoce.quantizers.in_use import CodebooksInUse
from vivavoce.schema.parts import configured, tuples
from vivavoce.tokenizers.text_aligned_parts import TextAlignedConfig, queries_of, speech_of, text_of
from vivavoce.tokenizers.unit_decoder import UnitDecoder, UnitDecoderConfig

UNSAID = "tokens aligned to text are made of speech and of what is said in it: give its text"


@dataclass(frozen=True)
class Said:
    """Texts as tokens [B, N] int64, zero behind the counts [B] that are valid; words [B, N]: which word of its text
    each belongs to, -1 behind the end."""

    tokens: Tensor
    words: Tensor
    counts: Tensor

    def to(self, device: Any) -> "Said":
        """The same on another device."""
        return Said(*(part.to(device) for part in (self.tokens, self.words, self.counts)))


class TextAlignedCodec(KeepsStill, CodebooksInUse, nn.Module):
    """Waveform [B, 1, S] and its text <-> codes [B, K, N], one set for each token of the text; whole signals only.

    There is no frame rate: `bits_per_token`, and as many tokens as the text has. config: what the codec is built from,
    without places of weights.
    """

    channels = 1
    still = ("encoder", "speech")
    speech: SemanticCodec

    def __init__(self, config: TextAlignedConfig):
        super().__init__()
        self.vocabulary, text = text_of(config.text)
        self.encoder, hearing = encoder_of(config.encoder)
        self.encoder.requires_grad_(False).check_layer(config.values)
        self.speech, speech = speech_of(config.speech)
        self.speech.requires_grad_(False)
        self.sample_rate = self.speech.sample_rate
        self.values, self.by_word = config.values, config.words
        self.queries = queries_of(config.queries, len(self.vocabulary), self.encoder)
        width = self.encoder.width
        self.quantizer = build_quantizer({"width": width, **config.quantizer})
        derived = {"vocabulary": len(self.vocabulary), "inputs": width, "units": self.speech.codebook_size,
                   "speaker": self.speech.to_mel.config.speaker}  # fmt: skip
        self.decoder = UnitDecoder(
            configured("text_aligned.decoder", UnitDecoderConfig, {**derived, **config.decoder})
        )
        same = self.encoder.sample_rate == self.sample_rate
        self.resample = None if same else resampling(self.sample_rate, self.encoder.sample_rate)
        own = dataclasses.asdict(self.queries.config)
        sizes = {name: value for name, value in own.items() if name not in ("vocabulary", "width")}
        self.config = dataclasses.replace(config, text=text, encoder=hearing, queries=plain(sizes), speech=speech)
        self._codebooks = self.quantizer.codebooks

    # What it is.

    @property
    def bits_per_token(self) -> float:
        """Of the codes of one token of text, each codebook coded alone; what is said is not counted."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    @property
    def file(self) -> str:
        """How the file of the text's vocabulary ends; a closed vocabulary has none (`AttributeError`)."""
        return self.vocabulary.file

    def save(self, path: Any) -> None:
        """Write the file of the text's vocabulary."""
        self.vocabulary.save(path)

    def read(self, path: Any) -> None:
        """Take the text's vocabulary from its file."""
        self.vocabulary.read(path)

    def self_contained(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's options, with the sizes of what they named by a place."""
        parts = [part for part in options.values() if isinstance(part, Mapping)]
        named = any(part.get("source") or part.get("path") for part in parts)
        return self.config.options() if named else dict(options)

    # Text.

    def said(self, text: Sequence[str] | str | Said | None, rows: int) -> Said:
        """What is said in `rows` signals: texts, one a row, as tokens. Raises `RequestError` for a row without."""
        if text is None:
            raise RequestError(UNSAID)
        if isinstance(text, Said):
            found = text
        else:
            texts = [text] if isinstance(text, str) else list(text)
            found = collated([self.tokens(each, f"text {row}") for row, each in enumerate(texts)])
        if len(found.counts) != rows:
            raise RequestError(f"{len(found.counts)} texts for {rows} rows of speech: give one for each")
        return found.to(self.queries.table.weight.device)

    def tokens(self, text: str, where: str = "text") -> list[list[int]]:
        """The tokens of each word of a text. Raises `RequestError` that begins with `where`."""
        if not isinstance(text, str):
            raise RequestError(f"{where}: {type(text).__name__} given, a transcript is expected")
        words = [self.vocabulary.word(word, number == 0) for number, word in enumerate(text.split())]
        words = [word for word in words if word]
        if not words:
            raise RequestError(f"{where} is empty; {UNSAID}")
        count, longest = sum(map(len, words)), self.queries.config.longest
        if count > longest:
            raise RequestError(f"{where} has {count} tokens, at most {longest} can be aligned: cut speech and text")
        return words

    # The tokenizer's face.

    @torch.no_grad()
    def encode(
        self, wave: Tensor, text: Sequence[str] | str | Said | None = None, lengths: Tensor | None = None
    ) -> tuple[Said, Tensor]:
        """Waveform [B, 1, S], of which lengths [B] samples are valid, and a text for each row -> what is said, with its
        tokens [B, N], and their codes [B, K, N], zero behind each row's tokens."""
        said = self.said(text, len(wave))
        latents = self.encode_latents(wave, said, lengths)
        return said, self.quantizer.encode(latents, said.counts, self._codebooks)

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        text: Sequence[str] | str | Said | None = None,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Codes [B, K, N] and their text -> waveform [B, 1, samples], zero behind what a row says.

        lengths [B]: how many samples each row is to last; else it ends where the decoder ends it. speaker [B, D]: the
        vector of a voice, as `beside` gives it. seed: of what the units are drawn by.
        """
        units, counts = self.spoken_units(codes, text, lengths, speaker, seed)
        wanted = counts * self.speech.hop if lengths is None else lengths
        voice = {} if speaker is None else {"speaker": speaker}
        return self.speech.decode(units[:, None], wanted, **voice)

    @torch.no_grad()
    def spoken_units(
        self,
        codes: Tensor,
        text: Sequence[str] | str | Said | None = None,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """As `decode`, the units of speech [B, T] and how many of each row count [B]."""
        self.quantizer.check_codes(codes)
        said = self.said(text, len(codes))
        if codes.shape[2] != said.tokens.shape[1]:
            raise RequestError(
                f"codes of {codes.shape[2]} tokens for texts of up to {said.tokens.shape[1]}: one set for each token"
            )
        home = self.decoder.head.weight
        vectors = self.quantizer.decode(codes.to(home.device)).to(home.dtype)
        told, size = self.decoder.told(said.tokens, vectors, said.counts, self._voice(speaker, len(codes)))
        if lengths is None:
            c = self.decoder.config
            least, most = (torch.ceil(said.counts * share).long() for share in (c.least, c.most))
        else:
            check_lengths(lengths, len(codes), None)
            least = most = self.speech.frames(lengths.to(home.device))
        return self.decoder.say(told, size, least, most, torch.full_like(said.counts, seed))

    @torch.no_grad()
    def beside(self, wave: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """What is told beside codes and text, as `decode` takes it: whose voice it is."""
        return self.speech.beside(wave, lengths)

    # What training works on.

    def encode_latents(self, wave: Tensor, said: Said, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S] and what is said in it -> a vector of each token [B, N, D], not quantized."""
        if wave.dim() != 3 or wave.shape[1] != 1:
            raise RequestError(f"waveform {tuple(wave.shape)}: [batch, 1, samples] at {self.sample_rate} Hz expected")
        keys, values, heard = self.frames_of(wave, lengths)
        x = self.queries(said.tokens, said.counts, keys, values, heard)
        return averaged(x, said.words) if self.by_word else x

    @torch.no_grad()
    def frames_of(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Waveform [B, 1, S] -> the frames in which tokens look for their place, and those of which they take, both
        [B, M, D], of which [B] are valid."""
        home = self.queries.table.weight
        x, sizes = wave.to(home.device, torch.float32).transpose(1, 2), lengths_of(wave[:, 0], lengths).to(home.device)
        if self.resample is not None:
            x, sizes = self.resample(x, sizes), self.resample.frames(sizes)
        x = x.transpose(1, 2)[..., : int(sizes.max())]
        found = [self.encoder.features(x, sizes, layer) for layer in (None, self.values)]
        return found[0].values.to(home.dtype), found[1].values.to(home.dtype), found[0].lengths

    def quantize(self, latents: Tensor, lengths: Tensor | None = None) -> Quantized:
        """Vectors [B, N, D] through the codebooks in use (training moves them); lengths [B] in tokens."""
        return self.quantizer(latents, lengths, self._codebooks)

    def unit_losses(
        self, wave: Tensor, said: Said, vectors: Tensor | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveform [B, 1, S] -> nats a unit of it, told its text and vectors [B, N, D] (None: the text alone), and the
        share of likeliest units that are right."""
        with torch.no_grad():
            units = self.speech.encode(wave, lengths)[:, 0]
            counts = self.speech.frames(lengths_of(wave[:, 0], lengths)).to(units.device)
            speaker = self.speech.speaker_of(wave, lengths)
        told, size = self.decoder.told(said.tokens, vectors, said.counts, speaker)
        return self.decoder.losses(told, size, units, counts)

    def _voice(self, speaker: Tensor | None, rows: int) -> Tensor:
        """Vectors of voices [B, D]; zeros are nobody's."""
        width, home = self.decoder.config.speaker, self.decoder.head.weight
        if speaker is not None and tuple(speaker.shape) != (rows, width):
            raise RequestError(f"speaker {tuple(speaker.shape)}: vectors [{rows}, {width}] expected")
        return home.new_zeros(rows, width) if speaker is None else speaker.to(home)


def collated(texts: Sequence[Sequence[Sequence[int]]]) -> Said:
    """Texts, each its words' tokens, as rows."""
    tokens = [torch.tensor([token for word in text for token in word]) for text in texts]
    words = [torch.tensor([number for number, word in enumerate(text) for _ in word]) for text in texts]
    counts = torch.tensor([len(row) for row in tokens])
    there = valid(counts, int(counts.max()) if len(counts) else 0)
    grid = torch.zeros_like(there, dtype=torch.int64)
    if not len(tokens):
        return Said(grid, grid, counts)
    filled = (grid.masked_scatter(there, torch.cat(tokens)), (grid - 1).masked_scatter(there, torch.cat(words)))
    return Said(*filled, counts)


def build_text_aligned(**options: Any) -> TextAlignedCodec:
    """An untrained one, but for what has a `source`; weights are drawn from torch's global generator. Raises
    `RecipeError`."""
    return TextAlignedCodec(configured("text_aligned", TextAlignedConfig, tuples(options)))
