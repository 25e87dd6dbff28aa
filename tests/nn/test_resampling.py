"""Resampling: a sine is the same sine at the other rate, and what the lower rate cannot hold is gone."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.resampling import resampling


@pytest.mark.parametrize("old,new", [(24000, 16000), (16000, 24000), (22050, 16000)])
@torch.no_grad()
def test_sines_stay_what_they_are(old, new):
    module = resampling(old, new).double()
    for hertz in (100, 1000, 5000):
        turns = 2 * torch.pi * hertz
        wave, wanted = (torch.sin(turns * torch.arange(rate // 5).double() / rate) for rate in (old, new))
        made = module(wave[None, :, None])[0, :, 0]
        assert len(made) == len(wanted)
        torch.testing.assert_close(made[200:-200], wanted[200:-200], atol=2e-4, rtol=0)
    above = torch.sin(2 * torch.pi * 9800 * torch.arange(old // 5).double() / old)
    if old > 19600 > new:
        assert float(module(above[None, :, None])[0, 200:-200].abs().max()) < 2e-3


def test_the_same_rate_is_refused():
    with pytest.raises(RequestError, match="nothing to resample"):
        resampling(16000, 16000)
