"""Training supervised semantic tokens: text is read through them, mel frames learn from them as they are."""

import pytest
import torch

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.errors import RecipeError
from vivavoce.quantizers import FiniteScalarQuantizer
from vivavoce.schema import read_recipe
from vivavoce.training.flow_task import FlowTask
from vivavoce.training.transcription_task import TranscriptionTask, edits, likeliest

SMALL = {"width": 32, "layers": 1, "heads": 2, "letters": "ab"}


def tones(text, seed):
    """A sound of 0.12 s for each letter, low or high, with noise and a pause behind it."""
    chance = torch.Generator().manual_seed(seed)
    time = torch.arange(2880) / 24000
    parts = []
    for letter in text:
        pitch = {"a": 300, "b": 2500}[letter] * (0.9 + 0.2 * torch.rand((), generator=chance))
        sound = 0.3 * torch.sin(2 * torch.pi * pitch * time) + 0.01 * torch.randn(2880, generator=chance)
        parts += [sound, 0.001 * torch.randn(2880, generator=chance)]
    return torch.cat(parts)[None]


@proves("cosyvoice-s3-v1", "mechanism")
def test_tokens_learn_what_is_read_from_them():
    """The recogniser behind the quantizer has nothing but the tokens, and the gradient of the text passes through."""
    torch.manual_seed(0)
    codec = narrow("cosyvoice-50hz")
    texts = ["a", "b"] * 4
    clips = [tones(text, number) for number, text in enumerate(texts)]
    held_out = [tones(text, 100 + number) for number, text in enumerate(texts)]
    task = TranscriptionTask(codec, clips, texts=texts, held_out=held_out, held_out_texts=texts, batch=8, **SMALL)
    before = {name: value.clone() for name, value in codec.decoder.state_dict().items()}
    with torch.no_grad():
        first = task.evaluate(0)
    optimizer = torch.optim.Adam([*codec.encoder.parameters(), *task.head.parameters()], 1e-2)
    codec.train()
    for step in range(20):
        for _, losses in task.updates(task.batch(step, 0, 1), step):
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
    ears = [p for name, p in codec.encoder.named_parameters() if p.requires_grad and "key.bias" not in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ears)
    codec.eval()
    with torch.no_grad():
        assert task.evaluate(0)["text"] < 0.5 * first["text"]
    assert all(torch.equal(value, before[name]) for name, value in codec.decoder.state_dict().items())


def syllables(tones, seed):
    """A whistle of 0.36 s for each tone, high and level (1) or falling by three octaves (4), and a pause behind it."""
    chance = torch.Generator().manual_seed(seed)
    parts = []
    for tone in tones:
        fall = torch.linspace(0, 3.0 if tone == "4" else 0, 8640)
        phase = (2400 * (0.95 + 0.1 * torch.rand((), generator=chance)) * 2**-fall / 24000).cumsum(0) * 2 * torch.pi
        sound = 0.3 * phase.sin() + 0.01 * torch.randn(8640, generator=chance)
        parts += [sound, 0.001 * torch.randn(2880, generator=chance)]
    return torch.cat(parts)[None]


@proves("toneunit", "mechanism")
def test_units_tell_the_tones_that_are_written():
    """Syllables that differ in their tone alone: read with it, through nothing but units of a grid, they have units of
    their own."""
    recipe = read_recipe("toneunit")
    assert set("az15") <= set(recipe.training[0].objective.options["letters"])
    torch.manual_seed(0)
    codec = narrow("cosyvoice2")
    assert isinstance(codec.quantizer, FiniteScalarQuantizer)
    tones = ["1", "4", "1", "4"]
    texts = [f"a{tone}" for tone in tones]
    clips, others = ([syllables(each, seed + n) for n, each in enumerate(tones)] for seed in (0, 100))
    task = TranscriptionTask(codec, clips, texts=texts, batch=4, stretch=2, **{**SMALL, "letters": "a14"})
    assert [target.tolist() for target in task.targets[:2]] == [[1, 2], [1, 3]]
    weights = [*codec.encoder.parameters(), *codec.quantizer.parameters(), *task.head.parameters()]
    optimizer, nats = torch.optim.Adam(weights, 5e-3), []
    codec.train()
    for step in range(41):
        for _, losses in task.updates(task.batch(step, 0, 1), step):
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            nats.append(float(losses["text"]))
    codec.eval()
    assert nats[-1] < 0.1 * nats[0]
    level, falling = (set(codec.encode(wave[None])[0, 0, 1:9].tolist()) for wave in others[:2])
    assert len(level & falling) <= 1 < len(level | falling), (level, falling)


def test_texts_that_cannot_be_told_are_left_out():
    codec = narrow("glm-4-voice")
    clips = [torch.zeros(1, 24000)] * 4
    texts = ["ab, ba!", "", "a" * 9, "abababababababab"]
    task = TranscriptionTask(codec, clips, texts=texts, **SMALL)
    assert task.usable == [0] and task.targets[0].tolist() == [1, 2, 2, 1]  # 13 tokens: no room for 9 equal letters
    stretched = TranscriptionTask(codec, clips, texts=texts, stretch=4, **SMALL)
    assert stretched.usable == [0, 2, 3]
    assert stretched.head(torch.zeros(1, 5, 16), torch.tensor([5])).shape == (1, 20, 3)
    lines = task.show(task.batch(0, 0, 1))
    assert "1 of 4 clips" in lines[0] and "'abba'" in lines[1]
    with pytest.raises(RecipeError, match="no clip"):
        TranscriptionTask(codec, clips[1:2], texts=[""], **SMALL)


def test_letters_are_read_and_counted():
    said = torch.eye(4)[torch.tensor([0, 1, 1, 0, 1, 2, 2, 3, 0])].log()
    assert likeliest(said) == [1, 1, 2, 3]
    assert [edits(*pair) for pair in (("", "abc"), ("kitten", "sitting"), ("ab", "ab"))] == [3, 3, 0]


def test_mel_frames_learn_from_tokens_that_stay():
    torch.manual_seed(0)
    codec = narrow("cosyvoice2")
    clips = list(speech_like(0.6, 24000, rows=4))
    task = FlowTask(codec, clips, held_out=clips[:2], seconds=0.4, batch=4)
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    optimizer = torch.optim.Adam([*codec.to_mel.parameters(), *codec.speaker.parameters()], 1e-2)
    with torch.no_grad():
        first = task.evaluate(0)
        assert first == task.evaluate(0)
    codec.train()
    for step in range(10):
        for name, losses in task.updates(task.batch(step, 0, 1), step):
            assert name == "codec"
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
    codec.eval()
    with torch.no_grad():
        assert task.evaluate(0)["flow"] < 0.9 * first["flow"]
    changed = {name.split(".parts.")[0] + name.split(".parts.")[1][:1] if ".parts." in name else name.split(".")[0]
               for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {"decoder0", "speaker"}
    with torch.no_grad():
        sound, heard = task.resynthesize(clips[0][None])
    assert sound.shape == clips[0][None].shape and heard.codes.shape == (1, 1, 15)
    with pytest.raises(RecipeError, match="no flow matching"):
        FlowTask(narrow("dmel"), clips)
