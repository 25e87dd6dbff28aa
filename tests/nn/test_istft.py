"""The inverse STFT as a stream: a spectrum analysed with the same windows comes back."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.istft import StreamingISTFT


def test_the_forward_transform_comes_back():
    """Analysis without a window, synthesis with the Hann window: away from the ends the waveform itself."""
    size, hop = 64, 16
    wave = torch.randn(1, 20 * hop + size)
    spectrum = torch.fft.rfft(wave.unfold(1, size, hop), norm="ortho")
    frames = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=-1)
    out = StreamingISTFT(size, hop, loudest=50)(frames)[0, :, 0]
    assert out.shape == (frames.shape[1] * hop,)
    assert torch.allclose(out[size:], wave[0, size : len(out)], atol=1e-4)


def test_sizes_that_leave_holes_are_refused():
    with pytest.raises(RequestError, match="must be a multiple of hop"):
        StreamingISTFT(100, 30)
