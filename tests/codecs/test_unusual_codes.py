"""What defines codecs whose codes are ordered, divided among domains, or a mixture: SoCodec, UniCodec, CLaM-TTS's."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codec_families import NARROW, narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.experts import MixtureOfExperts
from vivavoce.training.domain_task import DomainTask
from vivavoce.training.feature_task import FeatureTask
from vivavoce.training.initialise import unit_variance


def learned(task, batch, steps, rate=1e-2, beside=()):
    """Adam on a task's codec for some steps of one batch: what its updates say, step by step."""
    weights = [p for p in (*task.codec.parameters(), *beside) if p.requires_grad]
    optimizer, logs = torch.optim.Adam(weights, rate), []
    task.codec.train()
    for _ in range(steps):
        ((_, losses),) = task.updates(batch, 0)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        logs.append({key: float(value.detach()) for key, value in losses.items()})
    task.codec.eval()
    return logs


@proves("socodec", "mechanism")
@torch.no_grad()
def test_socodec_says_once_whose_voice_it_is():
    """Codes are the same in any voice; what is spoken comes of codes and voice; steps do as the whole."""
    codec = narrow("socodec")
    for convolution in codec.decoder.parts[2].convolutions()[1:]:
        convolution.weight.mul_(10)  # else it begins with silence
    codec.ears.voice.last.weight.mul_(10)
    wave, other = speech_like(0.6, 16000), speech_like(0.5, 16000, seed=3)
    codes, voice = codec.encode(wave), codec.speaker_of(wave)
    assert codes.shape == (1, 3, 5) and voice.shape == (1, 12)
    mine, theirs, nobody = (codec.decode(codes, voice=v) for v in (voice, codec.speaker_of(other), None))
    assert (mine - theirs).abs().max() > 1e-4 and (mine - nobody).abs().max() > 1e-4
    latents = codec.encode_latents(wave)
    assert torch.equal(latents[..., 12:], voice[:, None].expand(1, 5, 12))
    torch.testing.assert_close(codec.vocode(codec.decompress(codec.quantize(latents).latents)), mine)
    both = codec.speaker_of(torch.cat([wave, wave]), torch.tensor([9600, 5000]))
    torch.testing.assert_close(both, torch.cat([voice, codec.speaker_of(wave[..., :5000])]), atol=1e-5, rtol=1e-4)
    state, pieces = codec.decoder_state(1, voice), []
    for start in range(0, 5, 2):
        piece, state = codec.decode_step(codes[..., start : start + 2], state)
        pieces.append(piece[..., : int(state.emitted)])
    torch.testing.assert_close(torch.cat([*pieces, codec.decode_flush(state)[0]], -1), mine, atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match="voice"):
        codec.decode(codes, voice=voice[:, :5])


@proves("socodec", "mechanism")
def test_socodec_learns_mel_frames_and_features_from_pieces_of_another_order():
    """The speaker encoder hears shuffled pieces of a part while training; both distances fall, the ears stay."""
    torch.manual_seed(0)
    codec, wave = narrow("socodec"), speech_like(0.6, 16000, rows=2)
    heard = []
    codec.ears.voice.register_forward_pre_hook(lambda module, inputs: heard.append(inputs))
    task = FeatureTask(codec, list(wave), seconds=0.6, batch=2, distance="l1",
                       supervision={"feature_reconstruction": {}})  # fmt: skip
    ears = {key: value.clone() for key, value in codec.ears.features.state_dict().items()}
    logs = learned(task, task.batch(0, 0, 1), 25)
    assert all(logs[-1][name] < 0.8 * logs[0][name] for name in ("distance", "feature_reconstruction")), logs[-1]
    assert all(torch.equal(value, ears[key]) for key, value in codec.ears.features.state_dict().items())
    mel, (pieces, counts) = codec.features(task.batch(0, 0, 1)), heard[0]
    assert all(15 <= int(count) <= 45 for count in counts)
    for row, frames, count in zip(mel, pieces, counts):
        places = [int((row - frame).abs().sum(-1).argmin()) for frame in frames[:count]]
        steps = [after - before for before, after in pairwise(places)]
        assert steps.count(1) >= len(steps) - 2 and max(places) - min(places) == len(places) - 1  # three pieces


@proves("socodec", "mechanism")
def test_published_sizes_of_socodec():
    with torch.device("meta"):
        fast, slow = codec_of({"kind": "socodec"}), codec_of({"kind": "socodec-240ms"})
    assert [(c.hop, c.codebook_sizes) for c in (fast, slow)] == [(1920, (16384,) * 4), (3840, (16384,) * 8)]
    assert [round(c.bits_per_second, 1) for c in (fast, slow)] == [466.7, 466.7]
    assert fast.ears.features.width == 1024 and fast.decoder.parts[2].samples_per_frame == 160


@proves("unicodec-unified", "mechanism")
def test_experts_by_their_equations():
    """All frames go through what is shared, each through the likeliest of the others times its probability."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(6, lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)), 1, 3, active=2)
    x = torch.randn(2, 7, 6)
    expected = layer.shared[0](x).clone()
    shares = (x @ layer.gate.weight.T).softmax(-1)
    for row, frame in ((row, frame) for row in range(2) for frame in range(7)):
        best = sorted(range(3), key=lambda number: -float(shares[row, frame, number].detach()))[:2]
        for number in best:
            expected[row, frame] += shares[row, frame, number] * layer.routed[number](x[row, frame])
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(RecipeError, match="4 of 3 routed"):
        MixtureOfExperts(6, nn.Identity, routed=3, active=4)
    codec = narrow("unicodec-unified")
    blocks = codec.encoder.parts[-1].blocks
    assert all(len(block.feedforward.routed) == 3 and len(block.feedforward.shared) == 1 for block in blocks)


@proves("unicodec-unified", "mechanism")
def test_unicodec_tells_what_was_hidden_from_it():
    """The second stage: spans are hidden before the transformer and not behind it; the contrast by hand; it falls while
    crops are quantized within their domains; nothing is hidden, and no domain is told, of what is only heard."""
    torch.manual_seed(0)
    codec, clips = codec_of({"kind": "unicodec-unified", **NARROW["unicodec-unified"]}), speech_like(0.5, 24000, rows=3)
    with torch.no_grad():
        unit_variance(codec.encoder, lambda: codec.encode_latents(clips))
    contrast = {"masked_contrast": {"weight": 2.0, "mask": {"prob": 0.4, "length": 3}, "negatives": 5}}
    task = DomainTask(codec, clips, domains=["speech", "", "sound"], seconds=0.3, batch=3, supervision=contrast,
                      mel={"windows": [256], "mels": [8]})  # fmt: skip
    batch, term = task.batch(0, 0, 1), task.supervision.terms["masked_contrast"]
    codec.train()
    ((_, losses),) = task.updates(batch, 0)
    frames, mask, _ = term.hidden
    torch.testing.assert_close(frames, codec.local(batch["wave"]))
    shown = torch.where(mask[..., None], term.vector, frames)
    assert 0.1 < mask.float().mean() < 0.6 and torch.equal(task.latents, codec.in_context(shown))
    with codec.quantizer.within(codec.quantizer.numbers(["speech", None, "sound"])[batch["clips"]]):
        quantized = codec.quantize(task.latents)
    allowed = {0: range(20), 1: range(42), 2: range(30, 42)}
    for row, clip in enumerate(batch["clips"].tolist()):
        assert {*quantized.codes[row].flatten().tolist()} <= {*allowed[clip]}
    term.negatives = 4000  # so many that all others are drawn: the sum over draws is that over frames
    nats, count = 0.0, 0
    said, target = F.normalize(quantized.latents, dim=-1), F.normalize(frames, dim=-1)
    for row in range(3):
        places = mask[row].nonzero()[:, 0].tolist()
        for place in places:
            scores = said[row, place] @ target[row, places].T / 0.1
            own = scores[places.index(place)]
            others = torch.cat([scores[: places.index(place)], scores[places.index(place) + 1 :]])
            weight = 4000 / len(others)
            nats = nats + torch.log(own.exp() + weight * others.exp().sum()) - own
            count += 1
    torch.testing.assert_close(term(codec, batch["wave"], task.latents, quantized), nats / count, atol=0.05, rtol=0.01)
    term.negatives = 5
    assert losses["masked_contrast"].isfinite()
    seen = [log["masked_contrast"] for log in learned(task, batch, 24, 5e-3, term.parameters())]
    assert seen[-1] < math.log(6) < 0.6 * seen[0], seen  # better than chance
    with torch.no_grad():
        _, heard = task.resynthesize(clips[0][None])
        assert torch.equal(heard.codes, codec.encode(clips[0][None]))
    with pytest.raises(RecipeError, match="not divided"):
        DomainTask(object(), clips)


@proves("clamtts-mel-vae", "mechanism")
def test_mel_frames_come_back_from_a_mixture_of_codes():
    """The mel distance falls with the bound in the loss, the vocoder has no part; the published rate and size."""
    codec = narrow("clamtts-mel-vae")
    task = FeatureTask(codec, list(speech_like(1.0, 8000, rows=3)), seconds=0.2, batch=3, distance="l1")
    logs = learned(task, task.batch(0, 0, 1), 20)
    assert logs[-1]["distance"] < 0.5 * logs[0]["distance"] and logs[-1]["loss"] < logs[0]["loss"], (logs[0], logs[-1])
    assert logs[-1]["quantizer"] != logs[0]["quantizer"] and bool(codec.quantizer.books()[2].initialized)
    assert all(p.grad is None or not p.grad.any() for p in codec.decoder.parts[1].parameters())
    with torch.device("meta"):
        published = codec_of({"kind": "clamtts-mel-vae"})
    assert published.codebook_sizes == (1024,) * 32 and published.frame_rate == pytest.approx(10.77, abs=0.01)
    assert published.bits_per_second == pytest.approx(3445, abs=1)
