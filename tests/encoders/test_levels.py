"""The encoders' recipe level: a small one of each family, built by kind, gives features of every layer."""

import pytest
import torch

from proves import proves
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import RecipeError

SMALL = {
    "conv_widths": [16] * 7, "width": 32, "layers": 3, "heads": 4, "hidden": 48, "position_kernel": 16,
    "position_groups": 4,
}  # fmt: skip


def gives_features(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder({"kind": kind, **SMALL}).eval()
    waves = [0.1 * torch.randn(16000), 0.1 * torch.randn(5000)]
    both = encoder.features(waves, layer="all")
    assert both.values.shape == (2, 4, 49, 32) and both.lengths.tolist() == [49, 15]  # 20 ms a frame, 25 ms heard
    alone = encoder.features(waves[1:], layer=2).values
    assert torch.allclose(both.values[1, 2, :15], alone[0], atol=1e-4)
    assert both.values[0, 3].std(dim=0).mean() > 0.01


@proves("hubert", "recipe")
def test_hubert_gives_features():
    gives_features("hubert")


@proves("wav2vec2", "recipe")
def test_wav2vec2_gives_features():
    gives_features("wav2vec2")


@proves("wavlm", "recipe")
def test_wavlm_gives_features():
    gives_features("wavlm")


@proves("wavlm", "mechanism")
def test_wavlms_position_bias_is_relative_and_gated_by_content():
    """Two things tell WavLM's attention from HuBERT's: a bias by distance, and a gate on it that hears the content."""
    torch.manual_seed(0)
    encoder = build_encoder({"kind": "wavlm", **SMALL}).eval()
    wave = [0.1 * torch.randn(16000)]
    plain = encoder.features(wave).values
    table = next(parameter for name, parameter in encoder.named_parameters() if name.startswith("bias"))
    with torch.no_grad():
        table.add_(3 * torch.randn_like(table))
    moved = encoder.features(wave).values
    assert (plain - moved).abs().max() > 1e-3, "the bias by distance must count"
    gates = {name: parameter for name, parameter in encoder.named_parameters() if "gate" in name}
    assert gates, "no gate"
    with torch.no_grad():
        for parameter in gates.values():
            parameter.add_(torch.randn_like(parameter))
    assert (encoder.features(wave).values - moved).abs().max() > 1e-3, "the gate must count"


def test_hubert_has_no_such_bias():
    encoder = build_encoder({"kind": "hubert", **SMALL})
    with pytest.raises(StopIteration):
        next(name for name, _ in encoder.named_parameters() if name.startswith("bias"))


BODY = {"layers": 3, "width": 32, "heads": 4, "kernel": 5}
CONVOLUTIONS = {"conv_widths": [16] * 7}
KINDS = {
    "data2vec": {**SMALL, "position_kernel": 5},
    "unispeech": SMALL,
    "unispeech_sat": SMALL,
    "w2v_bert": {"body": BODY},
    "wav2vec2_conformer": {**CONVOLUTIONS, "body": BODY},
    "whisper": {"width": 32, "layers": 3, "heads": 4, "hidden": 48, "positions": 50},
}


def conforms(kind: str) -> None:
    """Frames of every layer, their exact number, a batch that is its rows, nothing from extreme signals but numbers."""
    torch.manual_seed(0)
    encoder = build_encoder({"kind": kind, **KINDS[kind]}).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    at = torch.arange(20000)
    waves = [0.1 * torch.randn(16000), 0.1 * torch.randn(5000), torch.zeros(9000), torch.ones(4000),
             (at // 40 % 2 * 2.0 - 1), 0.1 * torch.randn(300), torch.zeros(0)]
    both = encoder.features(waves, layer="all")
    assert both.values.shape[:2] == (7, 4) and both.values.shape[3] == 32 and both.values.isfinite().all()
    assert both.frame_rate == 50 and both.lengths.tolist() == [encoder.frames(len(wave)) for wave in waves]
    for row, wave in enumerate(waves):
        count = int(both.lengths[row])
        for layer in (2, "all"):
            alone = encoder.features([wave], layer=layer).values[0]
            expected = both.values[row, 2] if layer == 2 else both.values[row]
            assert torch.allclose(expected[..., :count, :], alone[..., :count, :], atol=1e-4)
        assert not both.values[row, :, count:].any()
    assert both.values[0, 3].std(dim=0).mean() > 0.01
    # The gradient's way, where rows are padded, gives the same.
    padded = torch.nn.utils.rnn.pad_sequence([wave for wave in waves[:6]], batch_first=True)
    lengths = torch.tensor([len(wave) for wave in waves[:6]])
    found = encoder(padded, lengths, "all")
    for row, count in enumerate(both.lengths.tolist()[:6]):
        scale = max(1.0, float(both.values[row].abs().max()))
        assert torch.allclose(found[row, :, :count], both.values[row, :, :count], atol=2e-4 * scale)


@pytest.mark.parametrize("kind", ["unispeech", "unispeech_sat", "wav2vec2_conformer"])
def test_what_the_atlas_does_not_list_conforms_too(kind):
    conforms(kind)


@proves("data2vec2", "mechanism")
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("heads", [4, 12, 3])
def test_alibi_falls_with_the_distance_both_ways_and_its_strength_is_learned(heads, per_layer):
    """As ALiBi's paper says of slopes: a geometric series that begins at its ratio, 2^(-8/n); of other numbers than
    powers of 2, the series of the power below, then every second one of the power above."""
    torch.manual_seed(0)
    sizes = {**SMALL, "width": 12 * heads, "heads": heads, "position_groups": 4, "position_layers": 2}
    encoder = build_encoder({"kind": "data2vec", **sizes, "alibi": {"per_head": True, "per_layer": per_layer}}).eval()
    assert encoder.bias.scale.requires_grad and encoder.bias.scale.shape == (3 if per_layer else 1, heads)
    assert bool((encoder.bias.scale == 1).all())
    with torch.no_grad():
        encoder.bias.scale.copy_(torch.rand_like(encoder.bias.scale) * 2 - 0.5)  # those below 0 count as 0
    series = {3: [2**-4, 2**-8, 2**-2], 4: [2**-2, 2**-4, 2**-6, 2**-8]}
    series[12] = [2 ** -(i + 1) for i in range(8)] + [2 ** -(i + 0.5) for i in range(4)]
    places, x = torch.tensor([[0, 1, 4, 9, 30]]), torch.randn(1, 5, 12 * heads)
    y = x
    for layer, block in enumerate(encoder.blocks):
        found = torch.zeros(5, 12 * heads)
        query, key, value = (part(y)[0].unflatten(-1, (heads, 12)) for part in (block.query, block.key, block.value))
        for head in range(heads):
            strength = max(float(encoder.bias.scale[layer if per_layer else 0, head].detach()), 0.0)
            for one in range(5):
                scores = [
                    query[one, head] @ key[other, head] / 12**0.5
                    - abs(int(places[0, one] - places[0, other])) * series[heads][head] * strength
                    for other in range(5)
                ]
                found[one, 12 * head : 12 * head + 12] = torch.stack(scores).softmax(0) @ value[:, head]
        y = block.attention_norm(y + block.output(found))
        y = block.feedforward_norm(y + block.feedforward(y))
    torch.testing.assert_close(encoder.attend_some(x, torch.tensor([5]), places), y, rtol=1e-4, atol=1e-5)
    beside = encoder.attend_some(torch.cat([x, x]), torch.tensor([5, 3]), torch.cat([places, places]))
    torch.testing.assert_close(beside[:1], y, rtol=1e-4, atol=1e-5)
    alone = encoder.attend_some(x[:, :3], torch.tensor([3]), places[:, :3])
    torch.testing.assert_close(beside[1:, :3], alone, rtol=1e-4, atol=1e-5)
    beside.square().sum().backward()
    assert bool((encoder.bias.scale.grad != 0).any())


def test_attention_has_one_kind_of_relative_positions():
    fixed = build_encoder({"kind": "hubert", **SMALL, "alibi": {"learned": False, "scale": 0.5}})
    assert not list(fixed.bias.parameters()) and fixed.bias.scale.tolist() == [[0.5]] and not fixed.bias.state_dict()
    with pytest.raises(RecipeError, match="one kind"):
        build_encoder({"kind": "wavlm", **SMALL, "alibi": {}})
    with pytest.raises(RecipeError, match=r"alibi: .*slope"):
        build_encoder({"kind": "hubert", **SMALL, "alibi": {"slope": 1}})
    with pytest.raises(RecipeError, match=r"alibi\.scale: 0"):
        build_encoder({"kind": "hubert", **SMALL, "alibi": {"scale": 0}})


@proves("data2vec", "recipe")
def test_data2vec_gives_features():
    conforms("data2vec")


@proves("w2v-bert-2", "recipe")
def test_w2v_bert_gives_features():
    conforms("w2v_bert")


@proves("codec/whisper", "recipe")
def test_whisper_gives_features():
    conforms("whisper")


@proves("w2v-bert-2", "mechanism")
@torch.no_grad()
def test_w2v_bert_hears_offsets_up_to_a_limit_and_its_convolutions_no_future():
    """What its conformer has of its own: one vector an offset, clipped at 64 behind and 8 ahead, causal depthwise
    convolutions; two frames of 80 bands side by side."""
    torch.manual_seed(0)
    encoder = build_encoder({"kind": "w2v_bert", "body": {"layers": 1, "width": 32, "heads": 4, "kernel": 5}})
    block = encoder.body.blocks[0]
    assert encoder.local_width == 160 and block.attention.offsets.shape == (64 + 8 + 1, 8)
    queries = torch.randn(1, 4, 100, 8)
    _, bias = block.attention._bias(queries, None)
    assert torch.equal(bias[..., 99, :36], bias[..., 99, :1].expand(-1, -1, 36))  # 64 and more behind: one vector
    assert torch.equal(bias[..., 0, 8:], bias[..., 0, 8:9].expand(-1, -1, 92))  # 8 and more ahead
    assert (bias[..., 50, 40] - bias[..., 50, 41]).abs().min() > 0
    x = torch.randn(1, 30, 32)
    changed = x.clone()
    changed[:, 20:] = 0
    assert torch.equal(block.conv(x, None)[:, :20], block.conv(changed, None)[:, :20])
    assert not torch.equal(block.conv(x, None)[:, 20:24], block.conv(changed, None)[:, 20:24])


@proves("codec/whisper", "mechanism")
@torch.no_grad()
def test_whisper_hears_windows_filled_with_silence_and_eight_decades():
    """A window's frames are those of the signal followed by silence; what is 80 dB below its loudest is one floor; its
    positions are the published sinusoids."""
    from vivavoce.audio.whisper import whisper_log_mel
    from vivavoce.encoders.whisper import sinusoids

    torch.manual_seed(0)
    encoder = build_encoder({"kind": "whisper", **KINDS["whisper"]}).eval()
    wave = 0.1 * torch.randn(8000)
    filled = torch.cat([wave, torch.zeros(8000)])
    assert torch.allclose(encoder.features([filled]).values[0, :25], encoder.features([wave]).values[0], atol=1e-5)
    mel = whisper_log_mel(torch.cat([wave, 1e-7 * torch.randn(8000)])[None], seconds=1.0)[0]
    assert float(mel.max() - mel.min()) == pytest.approx(2.0, abs=1e-4) and float(mel[60:].std()) < 1e-4
    table = sinusoids(50, 32)
    for position, channel in ((1, 0), (7, 3), (49, 15)):
        angle = torch.tensor(position * 10000 ** (-channel / 15.0))
        expected = torch.stack([angle.sin(), angle.cos()])
        assert torch.allclose(table[position, [channel, channel + 16]], expected, atol=1e-4)


@proves("mhubert", "recipe")
def test_mhubert_gives_units_of_its_layer():
    from vivavoce.encoders.units import UnitTokenizer

    torch.manual_seed(0)
    encoder = build_encoder({"kind": "hubert", **SMALL}).eval()
    made = encoder.features([0.1 * torch.randn(16000)], layer=2).values[0]
    units = UnitTokenizer(encoder, made[::5], layer=2)
    codes = units.encode([0.1 * torch.randn(16000), 0.1 * torch.randn(5000)])
    assert codes.shape == (2, 1, 49) and len(codes[0].unique()) > 3 and not codes[1, 0, 15:].any()


@proves("mhubert", "mechanism")
@torch.no_grad()
def test_mhuberts_units_are_said_without_repeats_and_their_durations_predicted():
    """What translates says each unit once; the vocoder knows how long (arXiv:2107.05604, sections 3.1 and 3.3)."""
    from vivavoce.encoders.units import deduplicate, expand
    from vivavoce.vocoders.registry import build_vocoder

    torch.manual_seed(0)
    voice = build_vocoder({
        "kind": "unit_hifigan", "units": 10, "unit_width": 8, "duration_hidden": 8,
        "generator": {"width": 16, "rates": [20, 16], "kernels": [40, 32], "residual_kernels": [3],
                      "residual_dilations": [[1, 3]]},
    }).eval()  # fmt: skip
    runs = deduplicate(torch.tensor([[4, 4, 4, 7, 1, 1, 4]]))
    assert runs.units.tolist() == [[4, 7, 1, 4]] and runs.durations.tolist() == [[3, 1, 2, 1]]
    voice.predictor.parts[-1].function.bias.fill_(1.5)  # about exp(1.5) - 1 frames each
    wave, _ = voice(runs.units)
    predicted = wave.shape[2] // voice.hop
    assert predicted > runs.lengths.item() and wave.shape[2] == predicted * voice.hop
    told, _ = voice(runs.units, None, runs.durations)
    assert told.shape[2] == 7 * 320
    as_frames, _ = voice(expand(runs.units, runs.durations)[0], None, torch.ones(1, 7, dtype=torch.int64))
    assert torch.allclose(told, as_frames, atol=1e-5)
