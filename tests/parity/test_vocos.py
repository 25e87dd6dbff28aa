"""Our Vocos with the weights of the vocos package gives its waveform, and its mel frames."""

import pytest
import torch
from vocos.feature_extractors import MelSpectrogramFeatures
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

from proves import proves
from vivavoce.errors import CheckpointError
from vivavoce.vocoders.vocos import from_vocos, load_vocos

BODY = {"input_channels": 20, "dim": 48, "intermediate_dim": 96, "num_layers": 3}
HEAD = {"dim": 48, "n_fft": 256, "hop_length": 64}


def config(padding):
    return {
        "feature_extractor": {"init_args": {"sample_rate": 24000}},
        "backbone": {"init_args": BODY},
        "head": {"init_args": {**HEAD, "padding": padding}},
    }


def reference(padding):
    """The package's two modules, and their weights as a whole model stores them; every weight counts."""
    body, head = VocosBackbone(**BODY).eval(), ISTFTHead(**HEAD, padding=padding).eval()
    with torch.no_grad():
        for parameter in (*body.parameters(), *head.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {f"backbone.{key}": value for key, value in body.state_dict().items()}
    return body, head, state | {f"head.{key}": value for key, value in head.state_dict().items()}


@proves("vocos", "weights")
@pytest.mark.parametrize("padding", ["center", "same"])
def test_waveform(padding):
    body, head, state = reference(padding)
    ours = from_vocos(config(padding), state)
    for frames in (2, 60):
        x = torch.randn(2, frames, 20)
        with torch.no_grad():
            theirs = head(body(x.transpose(1, 2)))
            wave = ours(x)[..., 0]
        assert wave.shape == theirs.shape == (2, (frames - (padding == "center")) * 64)
        assert (wave - theirs).abs().max() < 1e-4 * theirs.std()


@proves("wavtokenizer", "mechanism")
def test_a_body_that_is_told_a_bandwidth():
    """Adaptive norms, as in Vocos over EnCodec's codes and in WavTokenizer: the package's answer for each setting."""
    told = {**BODY, "adanorm_num_embeddings": 4}
    body, head = VocosBackbone(**told).eval(), ISTFTHead(**HEAD, padding="same").eval()
    with torch.no_grad():
        for parameter in (*body.parameters(), *head.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {f"backbone.{key}": value for key, value in body.state_dict().items()}
    state |= {f"head.{key}": value for key, value in head.state_dict().items()}
    ours = from_vocos({**config("same"), "backbone": {"init_args": told}}, state)
    x, waves = torch.randn(2, 30, 20), []
    for which in range(4):
        ours.condition = which
        with torch.no_grad():
            theirs = head(body(x.transpose(1, 2), bandwidth_id=torch.tensor([which])))
            waves.append(ours(x)[..., 0])
        assert (waves[-1] - theirs).abs().max() < 1e-4 * theirs.std()
    assert not torch.allclose(waves[0], waves[3], atol=1e-2)


def test_a_published_directory(tmp_path):
    import yaml

    body, head, state = reference("same")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config("same")))
    torch.save(state, tmp_path / "pytorch_model.bin")
    x = torch.randn(1, 9, 20)
    with torch.no_grad():
        wave = load_vocos(tmp_path, allow_pickle=True)(x)[..., 0]
        assert torch.allclose(wave, head(body(x.transpose(1, 2))), atol=1e-5)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        from_vocos({**config("same"), "backbone": {"init_args": {**BODY, "dim": 40}}}, state)


@pytest.mark.parametrize("padding", ["center", "same"])
def test_mel_frames(padding):
    _, _, state = reference(padding)
    ours = from_vocos(config(padding), state)
    wave = torch.randn(2, 4096) * 0.1
    theirs = MelSpectrogramFeatures(24000, 256, 64, 20, padding)(wave).transpose(1, 2)
    assert torch.allclose(ours.log_mel(wave), theirs, atol=1e-4)
