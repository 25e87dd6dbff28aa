"""Supervised semantic tokens: ours against xingchensong/S3Tokenizer, on random weights in its format."""

import pytest
import torch

from codec_parity import check_codes, check_variety, speech_like
from peers import peer
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.codecs.semantic_weights import fill_s3
from vivavoce.errors import CheckpointError

peer("s3tokenizer")
from s3tokenizer import log_mel_spectrogram  # noqa: E402
from s3tokenizer.model import ModelConfig, S3Tokenizer  # noqa: E402
from s3tokenizer.model_v2 import ModelConfig as ModelConfigV2  # noqa: E402
from s3tokenizer.model_v2 import S3TokenizerV2  # noqa: E402

SPOKEN = {
    "flow": {"width": 8, "heads": 1, "feedforward": 8, "layers": 1, "upper": 1, "channels": 8, "blocks": 1, "middle": 1,
             "head_dim": 4, "estimator_heads": 1},
    "vocoder": {"width": 8, "pitch_width": 4, "residual_kernels": [3], "residual_dilations": [[1]]}, "voice": 4,
}  # fmt: skip
SIZES = {"width": 128, "layers": 2, "heads": 2, "hidden": 512, "mels": 80}
KINDS = {"v1_25hz": "cosyvoice-25hz", "v1": "cosyvoice-50hz", "v2_25hz": "cosyvoice2"}


def theirs_of(name, sizes=(80, 1500, 128, 2, 2)):
    if "v2" in name:
        return S3TokenizerV2(f"speech_tokenizer_{name}", ModelConfigV2(*sizes)).eval()
    return S3Tokenizer(f"speech_tokenizer_{name}", ModelConfig(*sizes)).eval()


def randomized(model, wave):
    """Weights under which over a hundred tokens occur in `wave` [samples]."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "blocks" in name:
                parameter.mul_(2)
        mel = log_mel_spectrogram(wave, 80)[None]
        frames, _ = model.encoder(mel, torch.tensor([mel.shape[2]]))
        codebook = model.quantizer._codebook
        if hasattr(codebook, "project_down"):
            down = codebook.project_down
            points = down(frames[0])
            down.bias.sub_(points.mean(0)).div_(points.std(0))
            down.weight.div_(points.std(0)[:, None])
        else:
            unit = torch.nn.functional.normalize(frames[0], dim=-1)
            codebook.embed.copy_(unit.mean(0) + torch.randn(codebook.embed.shape) * unit.std(0))
    return model


PROVEN = {"v1": proves("cosyvoice-s3-v1", "weights"), "v2": proves("cosyvoice2-s3-v2", "weights", "outputs")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=PROVEN[name[:2]]) for name in KINDS])
@torch.no_grad()
def test_tokens_of_published_weights(name):
    wave = speech_like(12.0, 16000)
    theirs = randomized(theirs_of(name), wave[0, 0])
    ears = SIZES if "v1" in name else {"kind": "s3", **SIZES}
    vocoder = {**SPOKEN["vocoder"], "rates": [8, 5, 2], "kernels": [16, 11, 4]}
    options = {**SPOKEN, "sample_rate": 16000, "ears": ears, "vocoder": vocoder}
    codec = codec_of({"kind": KINDS[name], **options}).eval()
    fill_s3(codec, theirs.state_dict(), name)
    mel = log_mel_spectrogram(wave[0, 0], 80)[None]
    tokens, _ = theirs(mel, torch.tensor([mel.shape[2]]))
    check_variety(tokens)
    check_codes(codec, wave, tokens[:, None].long())
    # A padded row gives what it gives alone: theirs is batched by masks.
    batch = torch.zeros(2, 1, 64000)
    batch[0, 0], batch[1, 0, :32000] = wave[0, 0, :64000], wave[0, 0, 64000:96000]
    mels = [log_mel_spectrogram(row, 80) for row in (batch[0, 0], batch[1, 0, :32000])]
    padded = torch.nn.utils.rnn.pad_sequence([each.T for each in mels], batch_first=True).transpose(1, 2)
    found, counts = theirs(padded, torch.tensor([400, 200]))
    ours = codec.encode(batch, torch.tensor([64000, 32000]))
    same = [(ours[row, 0, :count] == found[row, :count]).float().mean() for row, count in enumerate(counts.tolist())]
    assert min(same) > 0.99 and counts.tolist() == codec.frames(torch.tensor([64000, 32000])).tolist()


def test_what_does_not_fit_is_refused():
    tensors = theirs_of("v2_25hz").state_dict()
    codec = codec_of({"kind": "cosyvoice2", "ears": {"kind": "s3", **SIZES}, **SPOKEN})
    missing = {name: value for name, value in tensors.items() if "fsmn" not in name}
    more = {**tensors, "more": torch.zeros(1)}
    odd = {**tensors, "encoder.conv1.bias": torch.zeros(3)}
    for wrong, message in ((missing, "fsmn_block.weight' is missing"), (more, "takes more"), (odd, "first.bias")):
        with pytest.raises(CheckpointError, match=message):
            fill_s3(codec, wrong, "file")


def test_published_sizes():
    for name, kind in KINDS.items():
        with torch.device("meta"):
            theirs = theirs_of(name, (128, 1500, 1280, 20, 6))
            ours = codec_of({"kind": kind})
        encoder = ours.encoder.parts[2].encoder
        assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in theirs.encoder.parameters())
        assert ours.frame_rate == (50 if name == "v1" else 25)
