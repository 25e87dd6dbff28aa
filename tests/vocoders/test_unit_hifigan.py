"""Unit HiFi-GAN: streams equal whole signals, batches equal rows, durations, conditions, files."""

import pytest
import torch

from vivavoce.encoders.units import expand
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.vocoders.checkpoints import fold_weight_norm, load_unit_vocoder, save_unit_vocoder
from vivavoce.vocoders.durations import duration_loss, to_frames
from vivavoce.vocoders.registry import build_vocoder

TINY = {
    "kind": "unit_hifigan", "units": 20, "unit_width": 8, "duration_hidden": 6, "speakers": 3, "speaker_width": 4,
    "languages": 2, "language_width": 2,
    "generator": {
        "width": 16, "rates": [4, 3], "kernels": [8, 7], "residual_kernels": [3, 5],
        "residual_dilations": [[1, 3], [1, 2]],
    },
}


@pytest.fixture
def vocoder():
    torch.manual_seed(1)
    vocoder = build_vocoder(TINY).eval()
    with torch.no_grad():
        for convolution in vocoder.generator.convolutions():
            convolution.weight.normal_(std=1.0 / (convolution.weight[0].numel()) ** 0.5)
        for parameter in vocoder.predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        vocoder.predictor.parts[4].function.bias.fill_(1.0)
    for parameter in vocoder.parameters():
        parameter.requires_grad_(False)
    return vocoder


WHO = {"speaker": torch.tensor([0, 2, 1]), "language": torch.tensor([1, 0, 1])}


def stream(vocoder, units, lengths, durations, steps):
    """Feed rows in the chunks of `steps` [[row counts]]; what each row emitted."""
    state = vocoder.initial_state(len(units), **WHO, predict=durations is None)
    at, parts = [0] * len(units), [[] for _ in units]
    for counts in [*steps, None]:
        if counts is None:
            wave, state = vocoder.flush(state)
        else:
            size = max(counts)
            chunk, lasting = torch.zeros(len(units), size, dtype=torch.int64), torch.zeros(3, size, dtype=torch.int64)
            for row, count in enumerate(counts):
                chunk[row, :count] = units[row, at[row] : at[row] + count]
                if durations is not None:
                    lasting[row, :count] = durations[row, at[row] : at[row] + count]
                at[row] += count
            given = None if durations is None else lasting
            wave, state = vocoder.step(chunk, state, torch.tensor(counts), given)
        for row, count in enumerate(state.emitted.tolist()):
            parts[row].append(wave[row, 0, :count])
    assert at == lengths
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize("predict", [True, False])
def test_a_stream_is_the_whole(vocoder, predict):
    units, lengths = torch.randint(0, 20, (3, 11)), [11, 4, 1]
    durations = None if predict else torch.randint(0, 5, (3, 11))
    whole, total = vocoder(units, torch.tensor(lengths), durations, **WHO)
    for steps in ([[11, 4, 1]], [[1, 0, 1], [0, 2, 0], [3, 1, 0], [7, 0, 0], [0, 1, 0]], [[1, 1, 0]] * 4 + [[7, 0, 1]]):
        found = stream(vocoder, units, lengths, durations, steps)
        for row in range(3):
            assert len(found[row]) == total[row]
            assert torch.allclose(found[row], whole[row, 0, : total[row]], atol=1e-5)


@pytest.mark.parametrize("predict", [True, False])
def test_a_batch_is_its_rows(vocoder, predict):
    units, lengths = torch.randint(0, 20, (3, 9)), [9, 5, 2]
    durations = None if predict else torch.randint(1, 4, (3, 9))
    wave, total = vocoder(units, torch.tensor(lengths), durations, **WHO)
    assert wave.std() > 0.05
    for row, count in enumerate(lengths):
        who = {key: value[row : row + 1] for key, value in WHO.items()}
        given = None if predict else durations[row : row + 1, :count]
        alone, size = vocoder(units[row : row + 1, :count], durations=given, **who)
        assert size == total[row]
        assert torch.allclose(wave[row, 0, : total[row]], alone[0, 0], atol=1e-5)
        assert not wave[row, 0, total[row] :].any()


def test_lengths_are_frames_times_hop(vocoder):
    durations = torch.tensor([[3, 0, 2, 1]])
    who = {key: value[:1] for key, value in WHO.items()}
    wave, total = vocoder(torch.tensor([[1, 2, 3, 4]]), durations=durations, **who)
    assert vocoder.hop == 12 and total.item() == wave.shape[2] == 6 * 12
    same, _ = vocoder(expand(torch.tensor([[1, 2, 3, 4]]), durations)[0], durations=torch.ones(1, 6).long(), **who)
    assert torch.allclose(wave, same, atol=1e-6)


def test_look_ahead_is_as_published(vocoder):
    state = vocoder.initial_state(1, torch.tensor([0]), torch.tensor([0]), predict=False)
    emitted = 0
    for heard in range(1, 41):
        _, state = vocoder.step(torch.tensor([[3]]), state)
        emitted += state.emitted.item()
        assert emitted >= (heard - vocoder.lookahead) * vocoder.hop
    assert 0 < emitted < 40 * vocoder.hop


def test_without_a_predictor_every_unit_is_a_frame():
    vocoder = build_vocoder({**TINY, "durations": False, "speakers": 0, "languages": 0}).eval()
    assert vocoder.generator.config.inputs == 8
    wave, total = vocoder(torch.randint(0, 20, (2, 7)), torch.tensor([7, 3]))
    assert total.tolist() == [84, 36] and wave.shape == (2, 1, 84)


def test_conditions_count(vocoder):
    units = torch.randint(0, 20, (1, 6))
    waves = [
        vocoder(units, speaker=torch.tensor([s]), language=torch.tensor([lang]))[0]
        for s, lang in ((0, 0), (1, 0), (0, 1))
    ]
    assert not torch.allclose(waves[0], waves[1], atol=1e-3) and not torch.allclose(waves[0], waves[2], atol=1e-3)


def test_speaker_vectors():
    vocoder = build_vocoder({**TINY, "speakers": 0, "speaker_vector": 5, "languages": 0}).eval()
    wave, _ = vocoder(torch.randint(0, 20, (2, 3)), speaker=torch.randn(2, 5))
    assert wave.shape[0] == 2
    with pytest.raises(RequestError, match="vectors"):
        vocoder(torch.randint(0, 20, (2, 3)), speaker=torch.tensor([1, 2]))


def test_durations_round_and_clamp():
    logs = torch.log1p(torch.tensor([-0.5, 0.0, 0.4, 1.4, 2.5, 3.5, 3.6, 1e9]))[:, None]
    assert to_frames(logs).tolist() == [1, 1, 1, 1, 2, 4, 4, 1000]


def test_duration_loss_leaves_the_ends_out():
    durations = torch.tensor([[9, 2, 3, 9], [9, 4, 9, 0]])
    logs = torch.log1p(durations.float())[..., None]
    logs[:, 0] += 5
    logs[0, 3] += 5
    logs[1, 2:] += 5
    assert duration_loss(logs, durations, torch.tensor([4, 3])) == 0
    logs[0, 1] += 3
    assert duration_loss(logs, durations, torch.tensor([4, 3])).item() == pytest.approx(9 / 3)


def test_save_and_load(vocoder, tmp_path):
    save_unit_vocoder(vocoder, tmp_path / "v")
    again = load_unit_vocoder(tmp_path / "v")
    units = torch.randint(0, 20, (3, 5))
    assert again.config == vocoder.config
    assert torch.allclose(again(units, **WHO)[0], vocoder(units, **WHO)[0], atol=1e-6)
    for key, value in vocoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    (tmp_path / "v" / "vocoder.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        load_unit_vocoder(tmp_path / "v")


def test_weight_norm_folds_in_both_namings():
    layer = torch.nn.Conv1d(4, 6, 3)
    new = torch.nn.utils.parametrizations.weight_norm(layer)
    new.parametrizations.weight.original0.data *= 1.7
    expected = new.weight.detach().clone()
    state = {f"x.{key}": value for key, value in new.state_dict().items()}
    old = {key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"): value for key, value in state.items()}
    for form in (state, old):
        assert torch.allclose(fold_weight_norm(form)["x.weight"], expected)


def test_requests_that_cannot_be(vocoder):
    units = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(RequestError, match="needs a speaker"):
        vocoder(units, language=torch.tensor([0]))
    with pytest.raises(RequestError, match="0 to 2"):
        vocoder(units, speaker=torch.tensor([3]), language=torch.tensor([0]))
    with pytest.raises(RequestError, match="other units"):
        vocoder(units + 20, speaker=torch.tensor([0]), language=torch.tensor([0]))
    with pytest.raises(RequestError, match="whole numbers"):
        vocoder(units.float(), speaker=torch.tensor([0]), language=torch.tensor([0]))
    state = vocoder.initial_state(1, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(RequestError, match="predict=False"):
        vocoder.step(units, state, durations=torch.ones_like(units))
    with pytest.raises(RecipeError, match="even or odd"):
        build_vocoder({**TINY, "generator": {**TINY["generator"], "kernels": [8, 6]}})
    with pytest.raises(RecipeError, match=r"vocoder\.kind"):
        build_vocoder({"kind": "griffin"})
    with pytest.raises(RecipeError, match="unit_widht"):
        build_vocoder({**TINY, "unit_widht": 3})


def test_half_precision_speaks_float32(vocoder):
    units, lengths = torch.randint(20, (3, 6)), torch.tensor([6, 2, 4])
    for durations in (None, torch.randint(1, 4, (3, 6))):
        expected, sizes = vocoder.float()(units, lengths, durations, **WHO)
        for dtype in (torch.bfloat16, torch.float16):
            half = vocoder.to(dtype)
            wave, found = half(units, lengths, durations, **WHO)
            assert wave.dtype == torch.float32
            if durations is not None:
                assert torch.equal(found, sizes)
                assert (wave - expected).square().mean() < 1e-2 * expected.square().mean()
            state = half.initial_state(3, **WHO, predict=durations is None)
            first, state = half.step(units, state, lengths, durations)
            rest, _ = half.flush(state)
            assert first.dtype == rest.dtype == torch.float32


def test_lengths_and_durations_that_cannot_be(vocoder):
    units = torch.randint(20, (3, 5))
    for lengths in ([9, 1, 1], [-1, 2, 2]):
        with pytest.raises(RequestError, match="room for 0 to 5"):
            vocoder(units, torch.tensor(lengths), **WHO)
    durations = torch.ones(3, 5, dtype=torch.int64)
    durations[1, 4] = -2
    with pytest.raises(RequestError, match="a duration of -2 frames"):
        vocoder(units, None, durations, **WHO)
    vocoder(units, torch.tensor([5, 4, 5]), durations, **WHO)  # what lies beyond a row's end may be anything
    with pytest.raises(RequestError, match="whole numbers of frames"):
        vocoder(units, None, durations.float(), **WHO)


def test_a_pickle_that_holds_no_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"num_embeddings": 20}')
    for content in (b"no pickle", b""):
        (tmp_path / "g_1").write_bytes(content)
        with pytest.raises(CheckpointError, match="g_1 holds more than weights, or is no checkpoint"):
            load_unit_vocoder(tmp_path, allow_pickle=True)
    torch.save([1, 2], tmp_path / "g_1")
    with pytest.raises(CheckpointError, match="g_1 holds no tensors"):
        load_unit_vocoder(tmp_path, allow_pickle=True)
