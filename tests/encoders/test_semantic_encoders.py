"""Encoders of supervised semantic tokens: S3's pieces of long signals, Whisper in blocks as a stream."""

import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from codec_parity import speech_like
from proves import proves
from streaming_contract import alone, check_lockstep, check_padded_batch
from vivavoce.audio.whisper import whisper_log_mel
from vivavoce.encoders.block_whisper import QUIET, BlockWhisper, StreamingWhisperMel
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.whisper import sinusoids
from vivavoce.errors import RecipeError

S3 = {"kind": "s3", "mels": 16, "width": 16, "layers": 1, "heads": 2, "hidden": 16, "memory": 5}


@torch.no_grad()
def test_long_signals_are_heard_in_pieces_that_overlap():
    torch.manual_seed(0)
    encoder = build_encoder({**S3, "window": 1.0, "overlap": 0.4})
    assert encoder.frame_rate == 25
    assert [encoder.frames(n) for n in (0, 159, 160, 640, 800, 16000)] == [0, 0, 1, 1, 2, 25]
    assert encoder.cuts(100) == [(0, 100)] and encoder.cuts(170) == [(0, 100), (60, 160), (120, 170)]
    wave = speech_like(2.0, 16000)[0, 0]
    whole = encoder.features([wave, wave[:9000]])
    assert whole.lengths.tolist() == [50, 14] and whole.values.shape == (2, 50, 16)
    alone_, short = encoder.features([wave]).values[0], encoder.features([wave[:9000]]).values[0]
    torch.testing.assert_close(whole.values[0], alone_)
    torch.testing.assert_close(whole.values[1, :14], short)
    mel = encoder.mel(wave)
    piece, _ = encoder.encode([mel[60:160]])
    torch.testing.assert_close(alone_[20:35], piece[0, 5:20])  # 0.2 s on each side are its neighbours'


def test_what_cannot_be_is_refused():
    for wrong, message in (({"positions": "learned"}, "positions"), ({"memory": 4}, "odd"), ({"heads": 3}, "multiple"),
                           ({"overlap": 15.0}, "half the window")):
        with pytest.raises(RecipeError, match=message):
            build_encoder({**S3, **wrong})


@torch.no_grad()
def test_streaming_mel_frames_are_whispers():
    wave = torch.cat([speech_like(0.5, 16000)[0, 0], torch.zeros(4000)])
    ours = StreamingWhisperMel(80)(wave[None, :, None])
    theirs = whisper_log_mel(wave[None], 80, None)
    loud = theirs > max(float(theirs.amin()), (QUIET + 4) / 4)
    torch.testing.assert_close(ours[loud], theirs[loud])
    assert float(ours.min()) == pytest.approx((QUIET + 4) / 4)


@proves("glm4voice-tokenizer", "mechanism")
@torch.no_grad()
def test_blocks_are_those_of_the_published_tokenizer():
    """transformers' Whisper layers under the block-causal mask, causal convolutions before, means behind them."""
    torch.manual_seed(0)
    config = WhisperConfig(d_model=16, encoder_attention_heads=2, encoder_ffn_dim=24, attn_implementation="eager")
    ours = BlockWhisper(mels=12, width=16, layers=2, heads=2, hidden=24, block=8, left=None).eval()
    layers = [WhisperEncoderLayer(config).eval() for _ in range(2)]
    for mine, theirs in zip(ours.parts[7:9], layers):
        there = dict(theirs.named_parameters())
        for name, other in (("attention.query", "self_attn.q_proj"), ("attention.key", "self_attn.k_proj"),
                            ("attention.value", "self_attn.v_proj"), ("attention.out", "self_attn.out_proj"),
                            ("attention_norm", "self_attn_layer_norm"), ("feedforward_norm", "final_layer_norm"),
                            ("feedforward.inner", "fc1"), ("feedforward.out", "fc2")):  # fmt: skip
            for kind in ("weight", "bias"):
                if f"{other}.{kind}" in there:
                    there[f"{other}.{kind}"].normal_(std=0.3)
                    mine.get_parameter(f"{name}.{kind}").copy_(there[f"{other}.{kind}"])
    wave = speech_like(0.5, 16000)[:, 0]
    x = ours.parts[0](wave[..., None])
    for conv, stride in ((ours.parts[1], 1), (ours.parts[3], 2)):
        padded = torch.nn.functional.pad(x.transpose(1, 2), (2, 0))
        x = torch.nn.functional.gelu(torch.nn.functional.conv1d(padded, conv.weight, conv.bias, stride)).transpose(1, 2)
    size = x.shape[1]
    x = x + sinusoids(size, 16)
    at = torch.arange(size)
    seen = (at[:, None] >= at) | (at[:, None] // 8 == at // 8)
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    for layer in layers:
        found = layer(x, mask)
        x = found[0] if isinstance(found, tuple) else found
    means = torch.nn.functional.pad(x, (0, 0, 0, -size % 4)).unflatten(1, (-1, 4)).mean(2)
    torch.testing.assert_close(ours(wave[..., None]), means, atol=1e-5, rtol=0)


@torch.no_grad()
def test_whisper_in_blocks_streams():
    torch.manual_seed(0)
    module = BlockWhisper(mels=12, width=8, layers=2, heads=2, hidden=12, block=6, left=2, pool=2).eval()
    signals = [torch.randn(size, 1) * 0.1 for size in (0, 6400, 2085, 1700)]
    singles = [alone(module, signal) for signal in signals]
    assert [len(single) for single in singles] == [0, 10, 4, 3]
    check_padded_batch(module, signals, singles, 1e-4)
    check_lockstep(module, signals, singles, 0, 1e-4, most=3000)
