"""Cutting waveforms into overlapping windows; how many there are is a formula, not a surprise."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from vivavoce.errors import RequestError

EDGES = ("snip", "reflect", "centre")


@overload
def frame_count(samples: int, window: int, hop: int, edges: str = "snip") -> int: ...
@overload
def frame_count(samples: Tensor, window: int, hop: int, edges: str = "snip") -> Tensor: ...
def frame_count(samples, window, hop, edges="snip"):
    """Windows of a signal of `samples` (an int, or an integer tensor of any shape).

    - `snip`: only windows that lie wholly inside: 0 if samples < window, else 1 + (samples - window) // hop;
    - `reflect`: one for every hop, round(samples / hop), halves up; frame t is centred on (t + 1/2) * hop and the
      signal is reflected at its ends, the end sample repeated (Kaldi's snip_edges=false);
    - `centre`: 1 + samples // hop; frame t is centred on t * hop, reflection without repeating the end sample
      (librosa's and torch.stft's center=True).
    """
    _check(window, hop, edges)
    if edges == "reflect":
        return (samples + hop // 2) // hop
    if edges == "centre":
        return 1 + samples // hop
    whole = 1 + (samples - window) // hop
    return whole.clamp(min=0) if isinstance(whole, Tensor) else max(whole, 0)


def frame(waveform: Tensor, window: int, hop: int, edges: str = "snip") -> Tensor:
    """Windows of waveforms [..., samples] -> [..., frame_count(samples, window, hop, edges), window].

    A view for `snip`, a copy for the others. Raises `RequestError` where `centre` reflects more than there is.
    """
    samples = waveform.shape[-1]
    count = frame_count(samples, window, hop, edges)
    if count == 0:
        return waveform.new_zeros(*waveform.shape[:-1], 0, window)
    if edges == "snip":
        return waveform.unfold(-1, window, hop)
    first = -(window // 2) if edges == "centre" else hop // 2 - window // 2
    if edges == "centre" and samples <= window // 2:
        raise RequestError(f"{samples} samples are too few to centre windows of {window}: {window // 2 + 1} needed")
    at = first + torch.arange(count, device=waveform.device)[:, None] * hop
    index = at + torch.arange(window, device=waveform.device)
    return waveform[..., _mirror(index, samples, repeat=edges == "reflect")]


def _mirror(index: Tensor, samples: int, repeat: bool) -> Tensor:
    """Any integer -> a sample of the signal continued by reflection at both ends, as often as it takes."""
    period = 2 * samples if repeat else max(2 * samples - 2, 1)
    index = index % period
    return torch.where(index < samples, index, period - index - (1 if repeat else 0))


def _check(window: int, hop: int, edges: str) -> None:
    if window < 1 or hop < 1 or edges not in EDGES:
        raise RequestError(f"framing: window {window}, hop {hop} (both from 1), edges {edges!r} (one of {EDGES})")
