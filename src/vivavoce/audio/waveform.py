"""`Audio`: a finite waveform with its rate, and the check that every verb applies to what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from vivavoce.errors import AudioError

if TYPE_CHECKING:
    import torch

LOWEST_RATE, HIGHEST_RATE, MOST_CHANNELS = 1000, 768_000, 1024


@dataclass(frozen=True, eq=False)
class Audio:
    """A waveform: `samples` float32 [channels, samples], nominally in [-1, 1], at `sample_rate` Hz.

    `samples` may be given as numpy array or torch tensor, [samples] or [channels, samples], of a floating
    type; it is kept as numpy float32. Zero samples are allowed (a silent reply), zero channels are not.
    `audio[a:b]` cuts in seconds.
    """

    samples: np.ndarray
    sample_rate: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_rate", check_rate(self.sample_rate))
        object.__setattr__(self, "samples", _as_channels(self.samples, "Audio"))

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples.shape[1] / self.sample_rate

    def __len__(self) -> int:
        """Number of samples of each channel."""
        return self.samples.shape[1]

    def __repr__(self) -> str:
        return f"Audio({self.duration:.3f} s, {self.sample_rate} Hz, {self.channels} channel(s))"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Audio):
            return NotImplemented
        return self.sample_rate == other.sample_rate and np.array_equal(self.samples, other.samples)

    def __getitem__(self, cut: slice) -> Audio:
        """`audio[0.5:1.5]`: from sample round(0.5 * rate) to before round(1.5 * rate); negative seconds
        count from the end; what lies outside is left out."""
        if not isinstance(cut, slice) or cut.step is not None:
            raise TypeError("Audio is cut by seconds: audio[start:stop]")
        bounds = [None if t is None else round(t * self.sample_rate) for t in (cut.start, cut.stop)]
        return Audio(self.samples[:, slice(*bounds)], self.sample_rate)

    def channel(self, index: int) -> Audio:
        """One channel as mono audio; raises `AudioError` where there is none of that index."""
        if not -self.channels <= index < self.channels:
            raise AudioError(f"channel {index} asked of audio with {self.channels} channel(s)")
        return Audio(self.samples[index][None], self.sample_rate)

    def mono(self) -> Audio:
        """The mean of all channels."""
        if self.channels == 1:
            return self
        return Audio(self.samples.mean(axis=0, keepdims=True), self.sample_rate)

    def resample(self, sample_rate: int) -> Audio:
        """At another rate; the length is `resampled_length(len(self), self.sample_rate, sample_rate)`."""
        from vivavoce.audio.resample import resample

        return Audio(resample(self.samples, self.sample_rate, sample_rate), check_rate(sample_rate))

    def tensor(self) -> torch.Tensor:
        """As a batch of one, float32 [1, channels, samples]."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.samples)).unsqueeze(0)


def check_rate(sample_rate: Any) -> int:
    """The rate as int; raises `AudioError` unless it is a whole number of Hz that audio can have."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or sample_rate % 1 != 0:
        raise AudioError(f"sample rate {sample_rate!r}: a whole number of Hz is expected")
    hertz = int(float(sample_rate))
    if not LOWEST_RATE <= hertz <= HIGHEST_RATE:
        raise AudioError(f"sample rate {hertz} Hz is outside {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    return hertz


def check_waveform(
    waveform: Any,
    sample_rate: int | None = None,
    *,
    where: str = "audio",
    channels: int | None = None,
    shortest: int = 1,
) -> np.ndarray:
    """What every verb asks of audio: float32 [channels, samples], finite, long enough.

    `waveform` is an `Audio`, a numpy array or a torch tensor ([samples] or [channels, samples]);
    `sample_rate` the rate that it must have where it is an `Audio`; `channels` the number that it must
    have; `where` names it in errors. Raises `AudioError`.
    """
    if isinstance(waveform, Audio):
        if sample_rate is not None and waveform.sample_rate != sample_rate:
            raise AudioError(
                f"{where}: the rate is {waveform.sample_rate} Hz and {sample_rate} Hz is needed: "
                f"use .resample({sample_rate})"
            )
        waveform = waveform.samples
    samples = _as_channels(waveform, where)
    if channels is not None and samples.shape[0] != channels:
        hint = ": use .mono()" if channels == 1 else ""
        raise AudioError(f"{where}: {samples.shape[0]} channels found, {channels} needed{hint}")
    if samples.shape[1] < shortest:
        found = "no samples" if samples.shape[1] == 0 else f"only {samples.shape[1]} sample(s)"
        raise AudioError(f"{where}: {found}, at least {shortest} needed")
    check_finite(samples, where)
    return samples


def check_finite(samples: np.ndarray, where: str, start: int = 0) -> None:
    """Raise `AudioError` naming the first NaN or infinite sample of [channels, samples]; `start` is added
    to it."""
    # The sum is finite for nearly every good waveform and needs no mask: look closer only when it is not.
    if np.isfinite(samples.sum(dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(samples.T))
    if len(bad):
        sample, channel = bad[0]
        value = samples[channel, sample]
        raise AudioError(
            f"{where}: sample {start + int(sample)} of channel {int(channel)} is {value}: "
            "a waveform must be finite; repair or leave out the recording"
        )


def _as_channels(waveform: Any, where: str) -> np.ndarray:
    """Any array of floats, [samples] or [channels, samples], as float32 [channels, samples]."""
    if hasattr(waveform, "detach"):
        waveform = waveform.detach().cpu()
        waveform = waveform.float().numpy() if waveform.is_floating_point() else waveform.numpy()
    samples = np.asarray(waveform)
    if samples.dtype.kind != "f":
        hint = " (for 16-bit integers divide by 32768)" if samples.dtype.kind in "iu" else ""
        raise AudioError(f"{where}: samples of type {samples.dtype} found, floats in [-1, 1] expected{hint}")
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2:
        raise AudioError(f"{where}: shape {list(samples.shape)} found, [samples] or [channels, samples] expected")
    if samples.shape[0] == 0:
        raise AudioError(f"{where}: no channels")
    if samples.shape[0] > MOST_CHANNELS:
        raise AudioError(
            f"{where}: {samples.shape[0]} channels of {samples.shape[1]} sample(s): "
            "was [samples, channels] given for [channels, samples]?"
        )
    return samples.astype(np.float32, copy=False)
