"""A codec that cuts the signal into overlapping chunks and brings each to the same loudness: EnCodec 48 kHz.

Source: EnCodec (arXiv:2210.13438, section 3.1; encodec/model.py, `encodec_model_48khz`). What a chunk was divided by,
its scale, is part of what is transmitted, beside the codes.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vivavoce.codecs.codec import Codec, Reconstruction
from vivavoce.codecs.time_norm import WholeChain, overlap_frames
from vivavoce.errors import RequestError
from vivavoce.nn.streaming import Chain, State, check_lengths, valid, zero_padding

LOUDNESS = 0.1  # the scale of chunks whose own is not given: about -20 dB below full scale
TOGETHER = 8  # chunks that go through the stacks at once


class ChunkedCodec(Codec):
    """Waveform [B, channels, samples] <-> codes [B, codebooks, frames] and scales [B, chunks].

    Chunks of `chunk` samples start every `stride` samples (so that they overlap), the last ones are shorter; a row's
    codes are those of its chunks one after another. `normalize`: each chunk is divided by its root mean square, that
    of the mean of its channels. Training (`forward`) takes each row as one chunk.
    """

    piece = None  # it cuts the signal itself

    def __init__(self, *parts: Any, chunk: int, stride: int, normalize: bool = True, **options: Any):
        super().__init__(*parts, **options)
        if not 1 <= stride <= chunk:
            raise RequestError(f"chunks of {chunk} samples every {stride}: the stride is from 1 to the chunk")
        self.chunk, self.stride, self.normalize = chunk, stride, normalize

    @property
    def frame_rate(self) -> float:
        """Frames of codes per second; what overlaps counts twice."""
        return -(-self.chunk // self.hop) * self.sample_rate / self.stride

    def frames(self, samples: int | Tensor):
        """Frames of codes for whole signals of `samples` (number, or integer tensor)."""
        counts = overlap_frames(torch.as_tensor(samples), self.chunk, self.stride, self.hop)
        return counts if isinstance(samples, Tensor) else int(counts)

    def chunks(self, samples: int) -> list[tuple[int, int]]:
        """Start and length in samples of each chunk of a signal."""
        return [(start, min(self.chunk, samples - start)) for start in range(0, samples, self.stride)]

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Reconstruction:
        """Waveform [B, C, S] through the codec, each row as one chunk; `lengths` [B] in samples."""
        scale = self._scale(wave, lengths)[:, None, None]
        heard = super().forward(wave / scale, lengths)
        return Reconstruction(heard.audio * scale, heard.codes, heard.losses, heard.latents)

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Whole waveform [B, C, S] -> codes [B, K, frames(S)] int64, zero beyond each row's frames."""
        return self.encode_scaled(wave, lengths)[0]

    @torch.no_grad()
    def encode_scaled(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole waveform [B, C, S] -> codes [B, K, frames(S)] and the scale of each chunk [B, chunks], float32."""
        x = self._channels_last(wave)
        if lengths is not None:
            check_lengths(lengths, len(x), x.shape[1])
        sizes = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        counts = self.frames(torch.tensor(sizes))
        codes = torch.zeros(len(x), self.codebooks, int(counts.max()), dtype=torch.int64, device=x.device)
        scales = torch.ones(len(x), max(len(self.chunks(size)) for size in sizes), device=x.device)
        for length, places in self._alike(sizes):
            pieces = torch.stack([x[row, start : start + length] for row, _, start, _ in places]).transpose(1, 2)
            found, scale = self.encode_chunks(pieces)
            for (row, number, _, at), some, own in zip(places, found, scale):
                codes[row, :, at : at + some.shape[1]], scales[row, number] = some, own
        return codes, scales

    @torch.no_grad()
    def encode_chunks(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Chunks [N, C, S] of one length -> codes [N, K, ceil(S / hop)] and their scales [N], float32."""
        pieces = self._channels_last(pieces).transpose(1, 2)
        scale = self._scale(pieces)
        # Calls the stacks, not `encode`: a chunk is not cut again.
        latents = self.encode_latents(pieces / scale[:, None, None])
        return self.quantizer.encode(latents, None, self.codebooks), scale.float()

    @torch.no_grad()
    def decode_chunks(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        """Codes [N, K, T] of chunks of one length and their scales [N] -> their sound [N, C, T x hop], float32."""
        found = self.decode_latents(self._dequantize(codes)).float()
        if scales is None:
            return found * (LOUDNESS if self.normalize else 1.0)
        return found * scales.to(found.device)[:, None, None]

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """Codes [B, K, T] -> waveform [B, C, S]; with `lengths` [B] in samples, cut to them (zeros behind).

        scales [B, chunks]: as encoding gave them; without them every chunk is as loud as the next (`LOUDNESS`).
        Neighbours fade into each other. Raises `RequestError` for a number of frames that no signal has.
        """
        codes = self._checked(codes).to(self._home(self.decoder)[0])
        if lengths is not None:
            check_lengths(lengths, len(codes), None)
        sizes = [self._samples(codes.shape[2])] * len(codes) if lengths is None else lengths.tolist()
        needed = int(self.frames(torch.tensor(sizes)).max())
        if needed > codes.shape[2]:
            raise RequestError(f"{max(sizes)} samples need {needed} frames of codes, there are {codes.shape[2]}")
        most = max(len(self.chunks(size)) for size in sizes)
        if scales is not None and (len(scales) != len(codes) or scales.shape[1] < most):
            raise RequestError(f"scales {tuple(scales.shape)} for {len(codes)} rows of up to {most} chunks")
        whole = max(-(-size // self.hop) * self.hop for size in sizes) + self.hop
        sound = codes.new_zeros(len(codes), self.channels, whole, dtype=torch.float32)
        weights = torch.zeros(len(codes), 1, whole, device=sound.device)
        for length, places in self._alike(sizes):
            count = -(-length // self.hop)
            own = None if scales is None else torch.stack([scales[row, number] for row, number, _, _ in places])
            found = self.decode_chunks(torch.stack([codes[row, :, at : at + count] for row, _, _, at in places]), own)
            for (row, _, start, _), piece in zip(places, found):
                end, fade = start + piece.shape[1], self.fade(sizes[row])[: piece.shape[1]].to(piece.device)
                sound[row, :, start:end] += fade * piece
                weights[row, :, start:end] += fade
        sound = sound / weights.clamp(min=1e-20)
        if lengths is None:
            return sound[..., : sizes[0]]
        return zero_padding(sound[..., : max(sizes)].transpose(1, 2), lengths.to(sound.device)).transpose(1, 2)

    def _alike(self, sizes: list[int]) -> Iterator[tuple[int, list[tuple[int, int, int, int]]]]:
        """Chunks of the same length, a few at a time: row, number in the row, start in samples, first frame."""
        groups: dict[int, list[tuple[int, int, int, int]]] = {}
        for row, size in enumerate(sizes):
            chunks = self.chunks(size)
            firsts = accumulate((-(-length // self.hop) for _, length in chunks), initial=0)
            for number, ((start, length), first) in enumerate(zip(chunks, firsts)):
                groups.setdefault(length, []).append((row, number, start, first))
        for length, places in groups.items():
            for first in range(0, len(places), TOGETHER):
                yield length, places[first : first + TOGETHER]

    def fade(self, samples: int) -> Tensor:
        """The weight of each sample of a chunk, of a signal of `samples`: a triangle over the frames of the first."""
        size = -(-min(self.chunk, samples) // self.hop) * self.hop
        return 0.5 - (torch.linspace(0, 1, size + 2)[1:-1] - 0.5).abs()

    def _samples(self, frames: int) -> int:
        """The longest signal that has so many frames."""
        low, high = 0, frames * self.hop + 1  # a signal of `high` samples has more frames
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.frames(middle) <= frames else (low, middle)
        if self.frames(low) != frames:
            raise RequestError(f"no signal has {frames} frames in chunks of {self.chunk} samples: give `lengths`")
        return low

    def _scale(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, S] -> [B]."""
        if not self.normalize:
            return wave.new_ones(len(wave))
        mono = wave.mean(1)
        if lengths is None:
            return mono.pow(2).mean(-1).sqrt() + 1e-8
        mono = mono * valid(lengths.to(mono.device), mono.shape[1])
        return (mono.pow(2).sum(-1) / lengths.to(mono.device).clamp(min=1)).sqrt() + 1e-8

    def _walk(self, chain: Chain, x: Tensor, lengths: Tensor | None, state: State | None = None) -> Tensor:
        """Rows of the same length together: a norm over time must not hear padding. There is no state to begin from."""
        assert isinstance(chain, WholeChain)
        if lengths is not None:
            check_lengths(lengths, x.shape[0], x.shape[1])
        if lengths is None or bool((lengths == x.shape[1]).all()):
            return chain(x)
        found = [chain(x[row : row + 1, :length])[0] for row, length in enumerate(lengths.tolist())]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
