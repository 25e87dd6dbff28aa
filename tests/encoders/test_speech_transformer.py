"""The trunk of HuBERT, wav2vec 2.0 and WavLM: batches, lengths, layers, requests."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from vivavoce.audio import Audio
from vivavoce.encoders.registry import ENCODERS, build_encoder
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.errors import AudioError, RecipeError, RequestError

SMALL = SpeechTransformerConfig(
    conv_widths=(16, 16, 16), conv_kernels=(10, 3, 2), conv_strides=(5, 2, 2), width=32, layers=3, heads=4, hidden=48,
    position_kernel=16, position_groups=4,
)
VARIANTS = {
    "group": SMALL,
    "layer": dataclasses.replace(SMALL, front_norm="layer", conv_bias=True, stable=True, normalize=True),
    "relative": dataclasses.replace(SMALL, relative_buckets=32, relative_distance=80, projection_norm=False),
    "falling": dataclasses.replace(SMALL, alibi={"per_head": True, "per_layer": True}),
}


def build(variant):
    torch.manual_seed(3)
    encoder = SpeechTransformer(VARIANTS[variant]).eval()
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


@pytest.fixture(params=list(VARIANTS))
def encoder(request):
    return build(request.param)


def test_a_padded_row_gives_what_it_gives_alone(encoder):
    lengths = torch.tensor([3000, 2417, 400, 61, 33, 0])
    waves = torch.randn(6, 1, 3000)
    padded = waves.clone()
    for row, length in enumerate(lengths):
        padded[row, :, length:] = float("nan")
    batch = encoder.features(padded, lengths, layer="all")
    assert batch.values.shape[1] == 4 and batch.lengths.tolist() == encoder.frames(lengths).tolist()
    for row, length in enumerate(lengths.tolist()):
        alone = encoder.features([waves[row, 0, :length]], layer="all")
        count = int(alone.lengths[0])
        scale = alone.values.std().item() if count else 1
        assert torch.allclose(batch.values[row, :, :count], alone.values[0], atol=1e-4 * scale)
        assert not batch.values[row, :, count:].any()


def test_padding_would_leak_without_the_masks():
    """The statistics over time and the attention hear the padding unless told: the property above can fail."""
    encoder = build("group")
    wave = torch.randn(1, 2000)
    alone = encoder(wave, torch.tensor([2000]))
    padded = torch.cat([wave, torch.zeros(1, 2000)], dim=1)
    assert not torch.allclose(encoder(padded, torch.tensor([4000]))[:, :50], alone[:, :50], atol=1e-2)


def test_frames_is_exact_and_published():
    published = SpeechTransformer(SpeechTransformerConfig(width=32, heads=4, hidden=32, layers=1, conv_widths=(8,) * 7))
    assert published.frame_rate == 50 and published.shortest() == 400
    for samples, frames in ((0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16000, 49), (160000, 499)):
        assert published.frames(samples) == frames
        assert published.frames(torch.tensor([samples])).tolist() == [frames]
    for samples in (400, 719, 720, 3333):
        assert published.features([torch.randn(samples)]).values.shape[1] == published.frames(samples)


def test_layers(encoder):
    wave = [torch.randn(900)]
    every = encoder.features(wave, layer="all").values[0]
    for layer in range(4):
        assert torch.equal(encoder.features(wave, layer=layer).values[0], every[layer])
    last = encoder.features(wave).values[0]
    expected = encoder.norm(every[3]) if encoder.config.stable else every[3]
    assert torch.allclose(last, expected)
    for layer in (-1, 4, "none"):
        with pytest.raises(RequestError, match="0 to 3"):
            encoder.features(wave, layer=layer)


def test_audio_lists_and_tensors_are_the_same(encoder):
    wave = torch.randn(500)
    as_list = encoder.features([Audio(wave, 16000)]).values
    assert torch.equal(as_list, encoder.features(wave.view(1, 1, -1)).values)


def test_what_cannot_be_heard_is_refused():
    encoder = build("group")
    with pytest.raises(AudioError, match="16000"):
        encoder.features([Audio(torch.zeros(500), 8000)])
    with pytest.raises(AudioError, match="mono"):
        encoder.features([torch.zeros(2, 500)])
    with pytest.raises(AudioError, match="mix channels"):
        encoder.features(torch.zeros(1, 2, 500))
    with pytest.raises(AudioError, match="not finite"):
        encoder.features(torch.full((1, 1, 500), float("nan")))
    with pytest.raises(RequestError, match="lengths"):
        encoder.features(torch.zeros(1, 1, 500), torch.tensor([501]))


def test_gradients_reach_the_weights(encoder):
    encoder(torch.randn(2, 600), torch.tensor([600, 400])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_registry_builds_random_sizes():
    sizes = dataclasses.asdict(SMALL)
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}
    for kind in ("hubert", "wav2vec2"):
        assert build_encoder({"kind": kind, **lists}).config == SMALL
    del lists["relative_buckets"]
    assert build_encoder({"kind": "wavlm", **lists}).bias is not None
    with pytest.raises(RecipeError, match=r"encoder\.kind"):
        build_encoder({"kind": "hubret"})
    with pytest.raises(RecipeError, match="layres"):
        build_encoder({"kind": "hubert", "layres": 3})
    with pytest.raises(RecipeError, match="source"):
        build_encoder({"kind": "hubert", "source": "somewhere", "layers": 3})


PUBLISHED = (
    "hubert", "wav2vec2", "wavlm", "unispeech", "unispeech_sat", "data2vec", "lighthubert", "w2v_bert",
    "wav2vec2_conformer", "whisper",
)  # of published sizes where none are given: see test_levels.py


SMALLER = {
    "block_whisper": {"mels": 16, "width": 32, "layers": 2, "heads": 2, "hidden": 48},
    "mel_patches": {"width": 32, "layers": 2, "heads": 2, "hidden": 48, "average": 2},
    "flow_transformer": {"width": 32, "layers": 3, "heads": 2, "hidden": 48},
    "sense_voice": {"width": 32, "layers": 2, "more": 1, "heads": 2, "hidden": 48},
    "mel_cnn": {"width": 48, "mels": 16, "channels": 8, "hidden": 32},
    "ecapa": {"width": 32, "channels": 16, "embedding": 8, "groups": 4, "attention": 8, "squeeze": 8},
    "beats": {"local": 16, "width": 32, "layers": 2, "heads": 2, "hidden": 48},
}  # of those that are large where no sizes are given


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in PUBLISHED])
def test_encoders_without_weights_keep_the_same_promises(kind):
    encoder = build_encoder({"kind": kind, **SMALLER.get(kind, {})}).eval()
    lengths = torch.tensor([4000, 2517, 399, 0])
    waves = torch.randn(4, 1, 4000) * 0.1
    batch = encoder.features(waves, lengths)
    assert batch.values.shape[2] == encoder.width and batch.lengths.tolist() == encoder.frames(lengths).tolist()
    for row, length in enumerate(lengths.tolist()):
        alone = encoder.features([waves[row, 0, :length]])
        count = int(alone.lengths[0])
        assert count == encoder.frames(length)
        assert torch.allclose(batch.values[row, :count], alone.values[0], atol=1e-4)
        assert not batch.values[row, count:].any()
    if not encoder.layers:
        with pytest.raises(RequestError, match="no layers"):
            encoder.features(waves, layer=1)


def test_true_is_no_layer():
    with pytest.raises(RequestError, match="layer=True"):
        build("group").features(torch.randn(1, 1, 800), layer=True)


def test_lengths_that_cannot_be():
    for lengths in ([900], [-1]):
        with pytest.raises(RequestError, match="room for 0 to 800"):
            build("group").features(torch.randn(1, 1, 800), torch.tensor(lengths))


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the hub, which has nothing."""
    asked = []

    def snapshot_download(repository, **options):
        asked.append({"repository": repository, **options})
        raise OSError("there is no such thing\nand more")

    monkeypatch.setattr("vivavoce.hub.need", lambda *_: SimpleNamespace(snapshot_download=snapshot_download))
    for flag in ("VIVAVOCE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(flag, raising=False)
    return asked


def test_convolutions_hear_a_few_frames_and_no_more():
    sizes = {"mels": 8, "width": 12, "layers": 2, "kernel": 3, "hidden": 16}
    encoder = build_encoder({"kind": "mel_convolutions", **sizes})
    local, counts = encoder.local(torch.randn(1, 16000) * 0.1, torch.tensor([16000]))
    changed = local.clone()
    changed[0, 40] += 1
    before, after = (encoder.context(encoder.embed(x), counts, "all") for x in (local, changed))
    heard = [frames.nonzero().flatten().tolist() for frames in (before != after).any(-1)[0]]
    assert heard == [[40], [39, 40, 41], [38, 39, 40, 41, 42]]
    assert torch.equal(encoder.context(encoder.embed(local), counts, 1), before[:, 1])
    with pytest.raises(RecipeError, match="kernel 4: an odd number of frames"):
        build_encoder({"kind": "mel_convolutions", "kernel": 4})


@pytest.mark.parametrize("flag", ["VIVAVOCE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_the_hub_is_not_asked(hub, flag, monkeypatch):
    monkeypatch.setenv(flag, "1")
    with pytest.raises(RequestError, match=r"'nobody/nothing': .* the environment says offline"):
        build_encoder({"kind": "hubert", "source": "nobody/nothing"})
    assert [request["local_files_only"] for request in hub] == [True]


def test_a_hub_id_and_its_revision(hub):
    for source, revision in (("nobody/nothing@v2", None), ("nobody/nothing", "v2"), ("nobody/nothing@v2", "v2")):
        with pytest.raises(RequestError, match=r"no encoder 'nobody/nothing.*: there is no such thing$"):
            build_encoder({"kind": "wavlm", "source": source, "revision": revision})
        request = hub.pop()
        assert (request["repository"], request["revision"]) == ("nobody/nothing", "v2")
        assert not request["local_files_only"] and not any("bin" in name for name in request["allow_patterns"])
    with pytest.raises(RequestError, match="give one revision"):
        build_encoder({"kind": "wavlm", "source": "nobody/nothing@v2", "revision": "v3"})
    with pytest.raises(RequestError, match="no encoder 'nothing': neither a file, a directory, nor a hub id"):
        build_encoder({"kind": "wavlm", "source": "nothing"})
