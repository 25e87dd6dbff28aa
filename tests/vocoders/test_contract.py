"""The streaming modules of the vocoders keep what every streaming module promises."""

import os

import pytest
import torch

from streaming_contract import alone, check_gradient, check_lockstep, check_padded_batch, check_published
from vivavoce.nn.streaming import Chain
from vivavoce.vocoders.bigvgan import BigVGAN
from vivavoce.vocoders.durations import DurationPredictor
from vivavoce.vocoders.flow_matching import FlowConfig, TokenToMel
from vivavoce.vocoders.hifigan import HiFiGAN, HiFiGANConfig
from vivavoce.vocoders.hift import HiFT, HiFTConfig
from vivavoce.vocoders.istft import TrimmedISTFT
from vivavoce.vocoders.vocos import Vocos, VocosConfig

SEEDS = range(40 if os.environ.get("VIVAVOCE_LONG") == "1" else 2)
TINY_GAN = HiFiGANConfig(3, 8, (5, 2), (11, 4), (3, 5), ((1, 3), (1, 2)))

TINY_HIFT = HiFTConfig(
    5, 4, 24, (2, 3), (4, 7), 8, 2, (3,), ((2,),), (3, 5), ((1,), (1,)), harmonics=2, pitch_width=6, voiced=0.0
)
TINY_FLOW = FlowConfig(
    tokens=20, mels=6, speaker=4, width=8, heads=2, feedforward=12, layers=1, upper=1, ahead=2, chunk=3, left=1,
    channels=8, estimator_heads=2, head_dim=4, blocks=1, middle=1, steps=2,
)  # fmt: skip


def vocos(padding):
    return Vocos(VocosConfig(4, 6, 8, 2, 16, 4, padding))


# name -> (module, width of its input)
MODULES = {
    "HiFi-GAN": (lambda: HiFiGAN(TINY_GAN), 3),
    "BigVGAN": (lambda: BigVGAN(TINY_GAN), 3),
    "HiFT": (lambda: HiFT(TINY_HIFT), 5),
    "flow matching": (lambda: Chain(*TokenToMel(TINY_FLOW).parts), 8),
    "durations": (lambda: DurationPredictor(4, 6), 4),
    "inverse STFT, centred": (lambda: TrimmedISTFT(16, 4, 8), 18),
    "inverse STFT, same": (lambda: TrimmedISTFT(16, 4, 6), 18),
    "Vocos, centred": (lambda: vocos("center"), 4),
    "Vocos, same": (lambda: vocos("same"), 4),
    "Vocos, causal": (lambda: vocos("causal"), 4),
}


def made(name):
    torch.manual_seed(0)
    make, width = MODULES[name]
    module = make().double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3)
    return module, width


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_any_chunks_any_batch_any_age(name):
    module, width = made(name)
    for seed in SEEDS:
        torch.manual_seed(seed)
        signals = [torch.randn(int(length), width).double() for length in torch.randint(0, 15, (4,))]
        singles = [alone(module, signal) for signal in signals]
        check_padded_batch(module, signals, singles, 1e-9)
        check_lockstep(module, signals, singles, seed, 1e-9, most=6)


# What the outer taps of BigVGAN's many filters add is less than float64 can tell.
@pytest.mark.parametrize("name", [name for name in MODULES if name != "BigVGAN"])
@torch.no_grad()
def test_what_it_publishes(name):
    check_published(*made(name))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "HiFT"])  # no gradient goes to its pitch
def test_gradient_flows(name):
    module, width = made(name)
    check_gradient(module, width, 30)
