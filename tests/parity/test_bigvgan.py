"""BigVGAN and the ECAPA-TDNN equal transformers' (those of Qwen2.5-Omni), weights carried over by order."""

import pytest
import torch
from torch import nn

from vivavoce.nn.ecapa import ECAPA
from vivavoce.vocoders.bigvgan import BigVGAN
from vivavoce.vocoders.hifigan import HiFiGANConfig

omni = pytest.importorskip("transformers.models.qwen2_5_omni.modeling_qwen2_5_omni")
CONFIGS = pytest.importorskip("transformers.models.qwen2_5_omni.configuration_qwen2_5_omni")


@torch.no_grad()
def test_bigvgan():
    """Frames of transformers' own scaling: log mel magnitudes of up to -115 dB in -1 to 1."""
    torch.manual_seed(0)
    sizes = {"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4], "resblock_kernel_sizes": [3, 5]}
    config = CONFIGS.Qwen2_5OmniBigVGANConfig(
        mel_dim=6, upsample_initial_channel=16, resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]], **sizes
    )
    theirs = omni.Qwen2_5OmniToken2WavBigVGANModel(config).eval()
    ours = BigVGAN(HiFiGANConfig(6, 16, (4, 2), (8, 4), (3, 5), ((1, 3, 5), (1, 3, 5)))).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
    blocks = [theirs.resblocks[2 * layer : 2 * layer + 2] for layer in range(2)]
    order = [theirs.conv_pre]
    for (up,), stacks in zip(theirs.ups, blocks):
        order += [up, *(conv for block in stacks for pair in zip(block.convs1, block.convs2) for conv in pair)]
    order.append(theirs.conv_post)
    for mine, other in zip(ours.convolutions(), order, strict=True):
        mine.weight.copy_(other.weight)
        mine.bias.zero_() if other.bias is None else mine.bias.copy_(other.bias)
    snakes = [snake for stacks in blocks for block in stacks for snake in block.activations] + [theirs.activation_post]
    own = [module for module in ours.modules() if hasattr(module, "alpha")]
    for mine, other in zip(own, snakes, strict=True):
        mine.alpha.copy_(other.act.alpha)
        mine.beta.copy_(other.act.beta)
    mel = torch.randn(1, 6, 40) - 3
    expected = theirs(mel)
    wave = ours(theirs.process_mel_spectrogram(mel).transpose(1, 2))[0, :, 0]
    assert wave.shape == expected.shape == (320,) and expected.std() > 0.05
    before = wave.clamp(-1 + 1e-6, 1 - 1e-6).atanh().clamp(-1, 1)  # theirs cuts where ours bends
    torch.testing.assert_close(before, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_ecapa():
    """Theirs reflects the signal at its ends; zeros are put there to compare. Padded rows are those alone."""
    torch.manual_seed(0)
    widths, kernels, dilations = [8, 8, 8, 16], [5, 3, 3, 1], [1, 2, 3, 1]
    config = CONFIGS.Qwen2_5OmniDiTConfig(
        mel_dim=6, enc_channels=widths, enc_kernel_sizes=kernels, enc_dilations=dilations, enc_res2net_scale=4,
        enc_se_channels=5, enc_attention_channels=7, enc_dim=10,
    )  # fmt: skip
    theirs = omni.ECAPA_TimeDelayNet(config).eval()
    for module in theirs.modules():
        if isinstance(module, nn.Conv1d):
            module.padding_mode = "zeros"
    ours = ECAPA(6, 10, widths, kernels, dilations, scale=4, squeezed=5, attended=7).eval()
    order = [theirs.blocks[0].conv]
    for block in theirs.blocks[1:]:
        order += [block.tdnn1.conv, block.tdnn2.conv, *(part.conv for part in block.res2net_block.blocks)]
        order += [block.se_block.conv1, block.se_block.conv2]
    order += [theirs.mfa.conv, theirs.asp.tdnn.conv, theirs.asp.conv, theirs.fc]
    layers = [module for module in ours.modules() if isinstance(module, nn.Conv1d | nn.Linear)]
    for mine, other in zip(layers, order, strict=True):
        mine.weight.copy_(other.weight.view_as(mine.weight))
        mine.bias.copy_(other.bias)
    x = torch.randn(2, 30, 6)
    torch.testing.assert_close(ours(x, torch.tensor([30, 30])), theirs(x), atol=1e-5, rtol=1e-4)
    short = ours(x, torch.tensor([30, 11]))
    torch.testing.assert_close(short[1], theirs(x[1:, :11])[0], atol=1e-5, rtol=1e-4)
    assert ours(x, torch.tensor([0, 5])).isfinite().all()
