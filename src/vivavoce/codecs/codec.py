"""A neural codec: waveform -> encoder -> quantizer -> decoder -> waveform, whole, in chunks, or in lockstep rows."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.tiles import in_tiles
from vivavoce.errors import RequestError
from vivavoce.nn.pieces import PieceStream
from vivavoce.nn.streaming import (
    INFINITE,
    Chain,
    State,
    Streaming,
    check_lengths,
    full_precision,
    join_rows,
    zero_padding,
)
from vivavoce.quantizers import Quantized, Quantizer
from vivavoce.quantizers.in_use import CodebooksInUse

LONGEST = 1 << 50  # samples; what is said to be longer counts as this, so that sums stay in an int64


@dataclass
class Reconstruction:
    """What a codec made of a waveform: audio [B, C, S] as long as the input, codes [B, K, T], latents [B, T, D]
    before quantization, losses by name (scalars)."""

    audio: Tensor
    codes: Tensor
    losses: dict[str, Tensor]
    latents: Tensor


class Codec(CodebooksInUse, nn.Module):
    """Waveform [B, channels, samples] <-> codes [B, codebooks, frames] at `frame_rate` = sample_rate / hop.

    encoder: waveform [B, S, channels] -> latents [B, T, D], a streaming chain; decoder: the way back. Both walk a
    long signal in tiles of about `tile` seconds for each thread, which stay in the processor's cache; the results are
    the same.

    A side that hears whole signals (a look-ahead without end) hears longer ones than `piece` + `around` seconds in such
    pieces, with so much context on each side: whole, batched and streamed (`vivavoce.nn.pieces`).

    `codebooks` may be set to fewer than the quantizer has: encoding then gives that many. `config`: what the codec was
    built from, for saving.
    """

    piece: float | None = 50.0
    around: float = 10.0

    def __init__(
        self,
        encoder: Chain,
        quantizer: Quantizer,
        decoder: Chain,
        sample_rate: int,
        channels: int = 1,
        tile: float = 1.0,
        config: Any = None,
    ):
        super().__init__()
        if encoder.width != quantizer.width:
            raise RequestError(f"latents are {encoder.width} wide, the quantizer takes {quantizer.width}")
        if encoder.hop.denominator != 1 or encoder.hop * decoder.hop != 1:
            raise RequestError(f"the encoder's hop {encoder.hop} is not undone by the decoder's {decoder.hop}")
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.sample_rate, self.channels, self.tile = sample_rate, channels, tile
        self._codebooks = quantizer.codebooks
        self.config = config
        self._wholes = [side for side in (encoder, decoder) if side.lookahead == INFINITE]

    @property
    def hop(self) -> int:
        """Samples per frame of codes."""
        return int(self.encoder.hop)

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second."""
        return self.sample_rate / self.hop

    @property
    def bits_per_second(self) -> float:
        """Of the codes, each codebook coded alone."""
        return self.frame_rate * sum(float(torch.tensor(size).log2()) for size in self.codebook_sizes)

    def frames(self, samples: int | Tensor):
        """Frames of codes for whole signals of `samples` (number, or integer tensor)."""
        counts = self.encoder.frames(torch.as_tensor(samples))
        return counts if isinstance(samples, Tensor) else int(counts)

    @property
    def pieces(self) -> tuple[float, float] | None:
        """Seconds of a piece and of the context on each side that codes hang on; None where the encoder streams."""
        return (self.piece, self.around) if self.piece is not None and self.encoder in self._wholes else None

    # Latents: what training works on.

    def encode_latents(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, C, S] -> latents [B, T, D] before quantization; `lengths` [B] in samples."""
        x = self._channels_last(wave)
        return self._walk(self.encoder, x, lengths)

    def quantize(self, latents: Tensor, lengths: Tensor | None = None) -> Quantized:
        """Latents [B, T, D] through the codebooks in use (training moves them); `lengths` [B] in frames."""
        return self.quantizer(latents, lengths, self._codebooks)

    def decode_latents(self, latents: Tensor, lengths: Tensor | None = None, state: State | None = None) -> Tensor:
        """Latents [B, T, D] -> waveform [B, C, T x hop]; `lengths` [B] in frames, `state` to begin from."""
        return self._walk(self.decoder, latents, lengths, state).transpose(1, 2)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Reconstruction:
        """Waveform [B, C, S] through the codec; `lengths` [B] in samples, the rest of each row comes back as zeros."""
        latents = self.encode_latents(wave, lengths)
        # Not `self.frames`, which counts those of overlapping chunks where there are any: here a row is heard whole.
        counts = None if lengths is None else self.encoder.frames(lengths)
        quantized = self.quantize(latents, counts)
        audio = self.decode_latents(quantized.latents, counts)[..., : wave.shape[-1]]
        if lengths is not None:
            audio = zero_padding(audio.transpose(1, 2), lengths).transpose(1, 2)
        return Reconstruction(audio, quantized.codes, {"quantizer": quantized.loss}, latents)

    # The tokenizer's face.

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whole waveform [B, C, S] -> codes [B, K, frames(S)] int64, zero beyond each row's frames."""
        latents = self.encode_latents(wave, lengths)
        counts = None if lengths is None else self.frames(lengths)
        return self.quantizer.encode(latents, counts, self._codebooks)

    def encoder_state(self, batch: int) -> State:
        """State of `batch` signals of which nothing has been heard yet."""
        return self._begun(self.encoder, batch)

    @torch.no_grad()
    def encode_step(
        self, wave: Tensor, state: State, lengths: Tensor | None = None, consume: bool = False
    ) -> tuple[Tensor, State]:
        """A chunk [B, C, S], any S -> codes [B, K, T] and the next state; `state.emitted` [B] counts valid frames.

        consume: the tensors of the old state may be overwritten, which saves a tenth of a frame's time where there is
        attention; it must not be used again.
        """
        x = self._channels_last(wave)
        latents, state = self._steps(self.encoder, x, state, lengths, consume)
        return self.quantizer.encode(latents, None, self._codebooks), state

    @torch.no_grad()
    def encode_flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the last codes [B, K, T], counted by `state.emitted`."""
        latents, state = self._end(self.encoder, state, rows)
        return self.quantizer.encode(latents, None, self._codebooks), state

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> waveform [B, C, T x hop]; with `lengths` [B] in samples, cut to them (zeros behind).

        The waveform is float32 at least, whatever the decoder computes in; so is that of the steps.
        """
        return self._decoded(self._checked(codes), lengths)

    def decoder_state(self, batch: int) -> State:
        """State of `batch` signals of which nothing has been decoded yet."""
        return self._begun(self.decoder, batch)

    @torch.no_grad()
    def decode_step(
        self, codes: Tensor, state: State, lengths: Tensor | None = None, consume: bool = False
    ) -> tuple[Tensor, State]:
        """Codes [B, K, T], `lengths` [B] in frames -> samples [B, C, S] and the next state with `emitted` [B].

        consume: as in `encode_step`.
        """
        codes = self._checked(codes)
        audio, state = self._steps(self.decoder, self._latents_of(codes, state), state, lengths, consume)
        return full_precision(audio).transpose(1, 2), state

    @torch.no_grad()
    def decode_flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the last samples [B, C, S]; none from a causal decoder."""
        audio, state = self._end(self.decoder, state, rows)
        return full_precision(audio).transpose(1, 2), state

    # Inside.

    def _decoded(self, codes: Tensor, lengths: Tensor | None, state: State | None = None) -> Tensor:
        """As `decode`, from a decoder's `state`."""
        latents = self._latents_of(codes, state)
        if lengths is None:
            return full_precision(self.decode_latents(latents, None, state))
        check_lengths(lengths, len(codes), None)
        counts, there = self.frames(lengths.long().clamp(max=LONGEST)), self._frames_in(codes)
        if int(counts.max()) > there:
            raise RequestError(
                f"{int(lengths.max())} samples need {int(counts.max())} frames of codes, there are {there}"
            )
        audio = full_precision(self.decode_latents(latents, counts, state))[..., : int(lengths.max())]
        return zero_padding(audio.transpose(1, 2), lengths).transpose(1, 2)

    def _checked(self, codes: Tensor) -> Tensor:
        """Codes as int64; `RequestError` unless they are whole numbers [B, K, T], B and K at least 1."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise RequestError(f"codes of type {codes.dtype}: integers expected, as encode gives them")
        if codes.dim() != 3 or not len(codes) or not codes.shape[1]:
            raise RequestError(f"codes {tuple(codes.shape)}: expected [batch, codebooks, frames], one of each at least")
        return codes.long()

    def _frames_in(self, codes: Tensor) -> int:
        """Frames of codes [B, K, T]."""
        return codes.shape[2]

    def _latents_of(self, codes: Tensor, state: State | None) -> Tensor:
        """What the decoder hears of codes [B, K, T]; `state` is its own, None at the beginning."""
        return self._dequantize(codes)

    def _dequantize(self, codes: Tensor) -> Tensor:
        """Quantized latents in the decoder's dtype."""
        device, dtype = self._home(self.decoder)
        return self.quantizer.decode(codes.to(device)).to(dtype)

    def _channels_last(self, wave: Tensor) -> Tensor:
        if wave.dim() != 3 or wave.shape[1] != self.channels:
            raise RequestError(
                f"waveform {tuple(wave.shape)}: this codec takes [batch, {self.channels}, samples] at "
                f"{self.sample_rate} Hz"
            )
        device, dtype = self._home(self.encoder)
        return wave.to(device=device, dtype=dtype).transpose(1, 2)

    @staticmethod
    def _home(module: Streaming) -> tuple[torch.device, torch.dtype]:
        parameter = next(module.parameters(), None)
        if parameter is not None:
            return parameter.device, parameter.dtype
        # A stack that learns nothing, as dMel's encoder, computes in float32 where its tables are.
        return next((table.device for table in module.buffers()), torch.device("cpu")), torch.float32

    def _in_pieces(self, chain: Chain) -> PieceStream | None:
        """How a stack that hears whole signals hears long ones; None of one that streams."""
        if self.piece is None or chain not in self._wholes:
            return None
        hop = math.lcm(chain.chunk, chain.hop.numerator)  # of the stack's grid
        size, around = (max(1, round(seconds * self._rate(chain) / hop)) for seconds in (self.piece, self.around))
        device, dtype = self._home(chain)
        return PieceStream(
            lambda x, state: self._whole(chain, x[None], None, state)[0],
            *(size, around, hop, int(hop / chain.hop)),
            nothing=torch.zeros(0, chain.width, device=device, dtype=dtype),
        )

    def _begun(self, chain: Chain, batch: int) -> State:
        """The state of `batch` rows of a stack that have heard nothing."""
        device, dtype = self._home(chain)
        begin, pieces = chain.initial_state(batch, device, dtype), self._in_pieces(chain)
        if pieces is None:
            return begin
        width = self.channels if chain is self.encoder else self.quantizer.width
        return pieces.initial_state(torch.zeros(batch, 0, width, device=device, dtype=dtype), begin)

    def _end(self, chain: Chain, state: State, rows: Tensor | None) -> tuple[Tensor, State]:
        """A stack's flush."""
        return (self._in_pieces(chain) or chain).flush(state, rows)

    def _walk(self, chain: Chain, x: Tensor, lengths: Tensor | None, state: State | None = None) -> Tensor:
        """The whole signal x [B, T, D] through a stack, all frames of every row; `state` to begin from."""
        if lengths is not None:
            check_lengths(lengths, x.shape[0], x.shape[1])
        pieces = self._in_pieces(chain)
        if pieces is None:
            return self._whole(chain, x, lengths, state)
        if x.shape[1] <= pieces.longest:
            return self._whole(chain, x, lengths, None if state is None else state["begin"])
        y, state = pieces.step(zero_padding(x, lengths), state or self._begun(chain, len(x)), lengths)
        emitted = state.emitted
        rest, state = pieces.flush(state)
        return join_rows([(y, emitted), (rest, state.emitted)])[0]

    def _whole(self, chain: Chain, x: Tensor, lengths: Tensor | None, state: State | None = None) -> Tensor:
        """As `_walk`, in one piece."""
        x = zero_padding(x, lengths)
        state = state or chain.initial_state(x.shape[0], x.device, x.dtype)
        y, state = self._in_tiles(chain, x, state, lengths)
        emitted = state.emitted
        rest, state = chain.flush(state)
        return join_rows([(y, emitted), (rest, state.emitted)])[0]

    def _steps(
        self, chain: Chain, x: Tensor, state: State, lengths: Tensor | None, consume: bool = False
    ) -> tuple[Tensor, State]:
        """One step of a stack over x."""
        pieces = self._in_pieces(chain)
        return self._in_tiles(chain, x, state, lengths, consume) if pieces is None else pieces.step(x, state, lengths)

    def _in_tiles(
        self, chain: Chain, x: Tensor, state: State, lengths: Tensor | None, consume: bool = False
    ) -> tuple[Tensor, State]:
        """One step of a stack over x; a long one is faster in tiles, unless gradients are recorded."""
        frames = max(1, round(self.tile * torch.get_num_threads() * self.frame_rate))
        tile = frames if chain is self.decoder else frames * self.hop
        if torch.is_grad_enabled() or x.shape[1] <= tile:
            return chain.step(x, state, lengths, consume)
        return in_tiles(chain, self._rate(chain), x, state, lengths, tile, consume)

    def _rate(self, chain: Chain) -> float:
        """What a stack hears in a second."""
        return self.sample_rate if chain is self.encoder else self.sample_rate / self.hop
