"""Comparing codecs: codebooks that are really used, codes equal but for counted ties, waveforms close."""

import torch
from torch import Tensor

from vivavoce.codecs import Codec, MultiRateCodec
from vivavoce.quantizers import (
    FactorizedResidualVectorQuantizer,
    ResidualVectorQuantizer,
    SplitResidualVectorQuantizer,
)


def speech_like(seconds: float, rate: int, rows: int = 1, seed: int = 0) -> Tensor:
    """Noise through moving resonances, louder and softer, with pauses: [rows, 1, samples], peak below 1."""
    chance = torch.Generator().manual_seed(seed)
    samples = int(seconds * rate)
    time = torch.arange(samples) / rate
    wave = torch.zeros(rows, samples)
    for row in range(rows):
        pitch = 90 + 120 * torch.rand((), generator=chance)
        glide = 1 + 0.2 * torch.sin(2 * torch.pi * 0.7 * time + row)
        phase = torch.cumsum(pitch * glide / rate, 0) * 2 * torch.pi
        for harmonic in range(1, 20):
            weight = torch.rand((), generator=chance) / harmonic
            swell = 1 + torch.sin(2 * torch.pi * time * (0.3 + 0.2 * harmonic))
            wave[row] += weight * torch.sin(harmonic * phase) * swell
        wave[row] += 0.3 * torch.randn(samples, generator=chance) * (torch.sin(2 * torch.pi * 1.3 * time) > 0.4)
        wave[row] *= (torch.sin(2 * torch.pi * 0.45 * time + row) > -0.7).float()
    return (0.5 * wave / wave.abs().amax(1, keepdim=True))[:, None]


@torch.no_grad()
def spread(points: Tensor, size: int, seed: int) -> Tensor:
    """Entries [size, D] with the mean and deviation of points [N, D]."""
    chance = torch.Generator().manual_seed(seed)
    noise = torch.randn(size, points.shape[1], generator=chance)
    return points.mean(0) + noise * points.std(0)


def spread_residual(points: Tensor, books: list[Tensor], seed: int = 0) -> None:
    """Overwrite `books` (each [C, D]) in place so that a residual quantizer of points [N, D] uses them all."""
    residual = points
    for number, book in enumerate(books):
        book.copy_(spread(residual, len(book), seed + number))
        residual = residual - book[torch.cdist(residual, book).argmin(1)]


def _stacks(codec: Codec) -> list[tuple[ResidualVectorQuantizer, int]]:
    """The residual quantizers of a codec, each with the number of its first codebook."""
    quantizer = codec.quantizer
    if isinstance(quantizer, SplitResidualVectorQuantizer):
        return [(quantizer.semantic, 0), (quantizer.acoustic, quantizer.semantic.codebooks)]
    assert isinstance(quantizer, ResidualVectorQuantizer)
    return [(quantizer, 0)]


def _forced(codec: Codec, latents: Tensor, theirs: Tensor) -> Tensor:
    """The code that each level gives where those before it are `theirs`."""
    if isinstance(codec.quantizer, FactorizedResidualVectorQuantizer):
        walk = codec.quantizer.walk(latents, theirs.shape[1], theirs)
        return codec.quantizer._joined([chosen for _, chosen in walk], torch.ones(latents.shape[:2], dtype=torch.bool))
    if not isinstance(codec.quantizer, ResidualVectorQuantizer | SplitResidualVectorQuantizer):
        return codec.quantizer.encode(latents, None, theirs.shape[1])
    forced = []
    for quantizer, first in _stacks(codec):
        residual = quantizer.input_projection(latents.float())
        for level, book in enumerate(quantizer.books()):
            if first + level < theirs.shape[1]:
                forced.append(book.search(residual.flatten(0, 1)).view(residual.shape[:2]))
                residual = residual - book.lookup(theirs[:, first + level])
    return torch.stack(forced, 1)


@torch.no_grad()
def check_codes(codec: Codec, wave: Tensor, theirs: Tensor) -> int:
    """Codes of `wave` equal `theirs` [B, K, T], level by level given theirs below; returns the number of ties.

    A tie is where float64 finds the two nearest entries closer than the design's bound; at most a frame in a thousand.
    """
    latents = codec.encode_latents(wave)
    ours = codec.encode(wave)
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} codes, the reference has {tuple(theirs.shape)}"
    different = _forced(codec, latents, theirs) != theirs
    if not different.any():
        assert torch.equal(ours, theirs)
        return 0
    uncertain = codec.quantizer.ties(latents, theirs)
    surprising = different & ~uncertain
    assert not surprising.any(), f"{int(surprising.sum())} of {theirs.numel()} codes differ and are no ties"
    frames = different.any(1).float().mean()
    assert frames <= 1e-3, f"{frames:.2%} of the frames differ by ties"
    return int(different.sum())


def check_variety(codes: Tensor) -> None:
    """Over a hundred different codes occur: that few are equal would show nothing."""
    found = len(codes.unique())
    assert found > 100, f"{found} different codes: the codebooks are hardly used, the comparison would show nothing"


def check_wave(ours: Tensor, theirs: Tensor) -> float:
    """Greatest difference in units of the reference's standard deviation: at most 1e-4."""
    assert ours.shape == theirs.shape
    error = float((ours - theirs).abs().max() / theirs.std())
    assert error < 1e-4, f"the waveforms differ by {error:.1e} of their deviation"
    return error


@torch.no_grad()
def check_modes(codec: Codec, wave: Tensor, sizes: list[int]) -> None:
    """Codes and waveform of a whole signal, of a padded batch and of a stream in pieces of `sizes` are the same."""
    whole = codec.encode(wave)
    frames, most = codec.frames(wave.shape[-1]), columns(codec, 1)
    assert whole.shape[-1] == frames * most
    sound = codec.decode(whole)
    assert sound.shape[-1] == frames * codec.hop

    lengths = torch.tensor([wave.shape[-1], wave.shape[-1] // 2 + 7, 3 * codec.hop + 1])
    batch = torch.full((3, wave.shape[1], wave.shape[-1]), float("nan"))
    for row, length in zip(batch, lengths):
        row[:, :length] = wave[0, :, :length]
    codes = codec.encode(batch, lengths)
    for row, length in zip(codes, lengths):
        alone = codec.encode(wave[:1, :, :length])
        check_codes(codec, wave[:1, :, :length], row[None, :, : alone.shape[-1]])
        assert (row[:, alone.shape[-1] :] == (-1 if isinstance(codec, MultiRateCodec) else 0)).all()
    sounds = codec.decode(codes, lengths)
    for row, row_codes, length in zip(sounds, codes, lengths):
        alone = codec.decode(row_codes[None, :, : columns(codec, codec.frames(int(length)))])[..., :length]
        check_wave(row[None, :, :length], alone)
        assert not row[:, length:].any()

    state, pieces, start, number = codec.encoder_state(len(wave)), [], 0, 0
    while start < wave.shape[-1]:
        chunk = wave[..., start : start + sizes[number % len(sizes)]]
        piece, state = codec.encode_step(chunk, state)
        pieces.append(piece[..., : columns(codec, int(state.emitted[0]))])
        start, number = start + chunk.shape[-1], number + 1
    piece, state = codec.encode_flush(state)
    pieces.append(piece)
    check_codes(codec, wave, behind_each_other(codec, pieces))

    state, sounds, start, number = codec.decoder_state(len(wave)), [], 0, 0
    while start < frames:
        chunk = between(codec, whole, start, start + 1 + number % 3)
        sound_piece, state = codec.decode_step(chunk, state)
        sounds.append(sound_piece[..., : int(state.emitted[0])])
        start, number = start + chunk.shape[-1] // most, number + 1
    sound_piece, state = codec.decode_flush(state)
    sounds.append(sound_piece)
    check_wave(torch.cat(sounds, -1), sound)


def columns(codec: Codec, frames: int) -> int:
    """The last dimension of the codes of so many frames."""
    return frames * max(codec.ratios) if isinstance(codec, MultiRateCodec) else frames


def behind_each_other(codec: Codec, pieces: list[Tensor]) -> Tensor:
    """Codes of consecutive pieces of a signal as those of one."""
    if not isinstance(codec, MultiRateCodec):
        return torch.cat(pieces, -1)
    levels = [codec.levels(piece) for piece in pieces]
    return codec.joined({name: torch.cat([level[name] for level in levels], -1) for name in levels[0]})


def between(codec: Codec, codes: Tensor, start: int, end: int) -> Tensor:
    """Codes of the frames from `start` to `end`."""
    if not isinstance(codec, MultiRateCodec):
        return codes[..., start:end]
    levels = codec.levels(codes)
    cut = {name: level[:, start * r : end * r] for (name, level), r in zip(levels.items(), codec.ratios)}
    return codec.joined(cut)
