"""Units and their vocoder behind the tokenizers' one face: what a codec can be asked, they can be asked."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.pieces import piece_stream
from vivavoce.encoders.streaming import StreamingEncoder
from vivavoce.encoders.units import CONFIG, UnitTokenizer, deduplicate
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.nn.pieces import PieceStream
from vivavoce.nn.streaming import State, check_lengths, zero_padding
from vivavoce.quantizers import Quantized
from vivavoce.quantizers.base import check_codes, perplexity
from vivavoce.vocoders.checkpoints import CONFIG as VOCODER
from vivavoce.vocoders.checkpoints import load_unit_vocoder, save_unit_vocoder
from vivavoce.vocoders.durations import duration_loss
from vivavoce.vocoders.unit_hifigan import UnitHiFiGAN

__all__ = ["CONFIG", "UnitCodec"]


class UnitCodec(nn.Module):
    """Waveform [B, 1, samples] -> units [B, 1, T] -> waveform in the vocoder's voice.

    Without a vocoder there is no way back: decoding raises `RequestError`. A vocoder with several speakers or
    languages speaks as `speaker` and `language`. end: whether a further id, `codebook_size`, ends what is said (for
    language models; no encoder gives it). For training (see `training.CodecTask`) the encoder is frozen and the
    vocoder learns, its duration predictor too: quantizing gives its loss.
    """

    channels = 1

    def __init__(
        self,
        units: UnitTokenizer,
        vocoder: UnitHiFiGAN | None = None,
        speaker: int = 0,
        language: int = 0,
        end: bool = False,
    ):
        super().__init__()
        self.units, self.vocoder = units.requires_grad_(False), vocoder
        self.end = units.codebook_size if end else None
        self.speaker, self.language = speaker, language
        self.sample_rate, self.frame_rate = units.sample_rate, units.frame_rate
        self.hop = round(self.sample_rate / self.frame_rate)
        if vocoder is not None:
            theirs = (vocoder.sample_rate, vocoder.hop, vocoder.config.units)
            if theirs != (self.sample_rate, self.hop, self.codebook_size):
                raise CheckpointError(
                    f"a vocoder of {theirs[2]} units at {theirs[0]} Hz and {theirs[1]} samples a frame cannot speak "
                    f"{self.codebook_size} units at {self.sample_rate} Hz and {self.hop}"
                )

    @property
    def codebooks(self) -> int:
        """One."""
        return 1

    @codebooks.setter
    def codebooks(self, count: int) -> None:
        if count != 1:
            raise RequestError(f"codebooks={count}: units have one")

    @property
    def codebook_size(self) -> int:
        """Number of units."""
        return self.units.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of units, as codecs give it."""
        return (self.codebook_size,)

    @property
    def bits_per_second(self) -> float:
        """Of the units, each coded alone and repeated ones too."""
        return self.frame_rate * math.log2(self.codebook_size)

    @property
    def fingerprint(self) -> str:
        """Of the units alone: another voice speaks the same tokens."""
        import hashlib

        from vivavoce.nn.weights import hash_tensors

        encoder = self.units.encoder
        kind = f"{type(encoder).__name__} {encoder.width} {self.frame_rate}, layer {self.units.layer}"
        kind += f", int8 {self.units.int8}" if self.units.int8 else ""
        digest = hashlib.sha256(kind.encode())
        hash_tensors(digest, self.units.state_dict())
        return digest.hexdigest()[:16]

    def frames(self, samples):
        """Units of `samples` (int or integer tensor): exact."""
        return self.units.frames(samples)

    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whole waveform [B, 1, S] -> units [B, 1, frames(S)] int64, zero beyond each row's frames."""
        return self.units.encode(wave, lengths)

    def encoder_state(self, batch: int) -> State:
        """State of `batch` signals; of an encoder that hears whole ones, in pieces: their units come a minute late.

        Raises `RequestError` for an encoder that has no pieces either.
        """
        encoder = self.units.encoder
        if isinstance(encoder, StreamingEncoder):
            return encoder.module.initial_state(batch)
        if encoder.piece is None:
            raise RequestError("these units are made of whole signals: their encoder looks ahead without end")
        return self._pieces().initial_state(torch.zeros(batch, 0, 1, device=self.units.centers.device))

    @torch.no_grad()
    def encode_step(self, wave: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """A chunk [B, 1, S], any S -> units [B, 1, T] and the next state; `state.emitted` [B] counts valid ones."""
        encoder = self.units.encoder
        if not isinstance(encoder, StreamingEncoder):
            codes, state = self._pieces().step(wave.transpose(1, 2).float(), state, lengths)
            return codes[:, None], state
        frames, state = encoder.module.step(wave.transpose(1, 2), state, lengths)
        return self._nearest(frames)[:, None], state

    @torch.no_grad()
    def encode_flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the last units [B, 1, T], counted by `state.emitted`."""
        encoder = self.units.encoder
        if not isinstance(encoder, StreamingEncoder):
            codes, state = self._pieces().flush(state, rows)
            return codes[:, None], state
        frames, state = encoder.module.flush(state, rows)
        return self._nearest(frames)[:, None], state

    def _pieces(self) -> PieceStream:
        nothing = torch.zeros(0, dtype=torch.int64)
        return piece_stream(self.units.encoder, self.units.heard, nothing)

    def _nearest(self, frames: Tensor) -> Tensor:
        return self.units.nearest(frames)

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Units [B, 1, T], one a frame -> waveform [B, 1, T x hop]; with `lengths` [B] in samples, as long as these.

        Encoders need some more samples than a frame's hop: what the last ones gave no unit for is silent.
        """
        codes = self._checked(codes)
        if lengths is None:
            counts = torch.full((len(codes),), codes.shape[2], device=codes.device)
        else:
            check_lengths(lengths, len(codes), None)
            counts = self.frames(lengths)
            if bool((counts > codes.shape[2]).any()):
                raise RequestError(f"{int(lengths.max())} samples need {int(counts.max())} units, not {codes.shape[2]}")
        wave, _ = self._voice()(codes[:, 0], counts, torch.ones_like(codes[:, 0]), **self._who(len(codes)))
        if lengths is None:
            return wave
        most = int(lengths.max()) if len(lengths) else 0
        wave = torch.nn.functional.pad(wave, (0, max(0, most - wave.shape[2])))[..., :most]
        return zero_padding(wave.transpose(1, 2), lengths).transpose(1, 2)

    @torch.no_grad()
    def speak(self, units: Tensor, durations: Tensor | None = None) -> Tensor:
        """Units [B, N] that last `durations` [B, N] frames each -> waveform [B, 1, samples].

        Without durations they last as the vocoder's predictor has it, or one frame each where it has none.
        """
        voice = self._voice()
        home = voice.unit_embedding.weight.device
        durations = None if durations is None else durations.to(home)
        return voice(units.to(home), None, durations, **self._who(len(units)))[0]

    def decoder_state(self, batch: int) -> State:
        """State of `batch` signals of which nothing has been decoded yet."""
        return self._voice().initial_state(batch, **self._who(batch), predict=False)

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Units [B, 1, T], `lengths` [B] in frames -> samples [B, 1, S] and the next state with `emitted` [B]."""
        codes = self._checked(codes)
        if len(codes) != state.batch:
            raise RequestError(f"codes of {len(codes)} rows for the state of {state.batch}")
        return self._voice().step(codes[:, 0], state, lengths)

    @torch.no_grad()
    def decode_flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the last samples [B, 1, S]."""
        return self._voice().flush(state, rows)

    def _checked(self, codes: Tensor) -> Tensor:
        check_codes(codes, self.codebook_sizes)
        if not len(codes):
            raise RequestError(f"codes {tuple(codes.shape)}: expected [batch, 1, frames], one row at least")
        return codes.long()

    def _voice(self) -> UnitHiFiGAN:
        if self.vocoder is None:
            raise RequestError("these units have no vocoder: train one, or put one's files beside them")
        return self.vocoder

    def _who(self, batch: int) -> dict[str, Tensor]:
        """The speaker and language that the vocoder asks for."""
        config = self._voice().config
        if config.speaker_vector:
            raise RequestError("a vocoder that is told its speaker by a vector must be called itself")
        who = {"speaker": self.speaker} if config.speakers else {}
        who |= {"language": self.language} if config.languages else {}
        return {name: torch.full((batch,), number) for name, number in who.items()}

    # What training works on.

    def encode_latents(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S] -> the encoder's frames [B, ceil(S / hop), D]; silence behind gives the last ones."""
        wanted, extra = -(-wave.shape[2] // self.hop), 0
        while self.frames(wave.shape[2] + extra) < wanted:
            extra += self.hop
        longer = torch.nn.functional.pad(wave, (0, extra))
        return self.units.encoder.features(longer, None, self.units.layer).values[:, :wanted]

    def quantize(self, latents: Tensor, lengths: Tensor | None = None) -> Quantized:
        """Frames [B, T, D] -> the vocoder's unit embeddings [B, T, E], and the loss of its duration predictor."""
        voice = self._voice()
        codes = self.units.label(latents, lengths)
        loss = latents.new_zeros(())
        if voice.predictor is not None:
            runs = deduplicate(codes, lengths)
            loss = duration_loss(voice.predictor(voice.unit_embedding(runs.units), runs.lengths), runs.durations,
                                 runs.lengths)
        counts = torch.bincount(codes.flatten(), minlength=self.codebook_size).float()
        usage = (counts > 0).float().mean()[None]
        return Quantized(voice.unit_embedding(codes), codes[:, None], loss, usage, perplexity(counts)[None])

    def decode_latents(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Unit embeddings [B, T, E] -> waveform [B, 1, T x hop]."""
        voice = self._voice()
        state = voice.initial_state(len(latents), **self._who(len(latents)), predict=False)
        around = [state[key][:, None].expand(-1, latents.shape[1], -1) for key in ("before", "after")]
        frames = torch.cat([around[0], latents, around[1]], dim=2)
        return voice.generator(frames, lengths).transpose(1, 2)

    def save(self, directory: str | Path) -> None:
        """Units and vocoder into one directory."""
        self.units.save(directory)
        if self.vocoder is not None:
            save_unit_vocoder(self.vocoder, directory)

    @classmethod
    def load(cls, directory: str | Path, **who: Any) -> "UnitCodec":
        """What `save` wrote; a vocoder is loaded where there is one."""
        vocoder = load_unit_vocoder(directory) if (Path(directory) / VOCODER).is_file() else None
        return cls(UnitTokenizer.load(directory), vocoder, **who).eval()
