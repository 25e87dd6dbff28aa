"""A codec is trained at all its rates, and a trained one goes on with another voice and the judges that it had."""

import json
import math

import numpy as np
import pytest
import torch

from vivavoce.audio import Audio, write
from vivavoce.audio.loudness import loudness
from vivavoce.codecs.registry import codec_of
from vivavoce.errors import RecipeError
from vivavoce.nn.weights import read_safetensors
from vivavoce.schema import read_recipe
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.crops import as_loud, played, turned
from vivavoce.training.judges import judges_of
from vivavoce.training.recipes import train_recipe

TINY = {
    "kind": "convnext_codec", "fft_size": 64, "hop": 32, "phases": 8, "encoder": [[8, 1], [8, 1]],
    "decoder": [[8, 1], [8, 1]], "dim": 6, "codebooks": 4, "codebook_size": 8, "use_codebooks": 1,
}  # fmt: skip
CLIPS = [0.2 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def task(**options):
    torch.manual_seed(0)
    return CodecTask(codec_of(TINY), CLIPS, seconds=0.05, batch=4, mel="speech", **options)


def moved(codec, work):
    """Which codebooks `work` has changed."""
    before = [book.updates.clone() for book in codec.quantizer.books()]
    work()
    return [bool(book.updates != old) for book, old in zip(codec.quantizer.books(), before)]


def test_all_codebooks_learn_whatever_number_is_in_use():
    trained = task()
    assert moved(trained.codec, lambda: list(trained.updates(trained.batch(0, 0, 1), 0))) == [True] * 4
    assert trained.codec.codebooks == 1  # and what it uses stays as it was
    kept = task(keep_codes=True)
    (_, losses), = kept.updates(kept.batch(0, 0, 1), 0)
    assert "perplexity/0" in losses and "perplexity/1" not in losses  # the decoder learns what it will hear


def test_the_bit_rate_follows_its_schedule():
    trained = task(codebooks=[[0, 1], [10, 3]])
    for step, learned in ((0, 1), (9, 1), (10, 3), (500, 3)):
        found = moved(trained.codec, lambda step=step: list(trained.updates(trained.batch(step, 0, 1), step)))
        assert sum(found) == learned, step
    late = task(codebooks=[[10, 2]])
    assert late.codebooks_at(0) == 4 and late.codebooks_at(10) == 2
    for wrong in ([[0, 5]], [[0, 0]], [[5, 2], [5, 3]], [[0]]):
        with pytest.raises(RecipeError, match="pairs of a step and 1 to 4"):
            task(codebooks=wrong)


def test_crops_are_played_faster_and_slower():
    time = torch.arange(1600) / 16000
    tone = torch.sin(2 * torch.pi * 1000 * time)[None]
    slower = played(tone, 2000)  # 1 kHz becomes 800 Hz at the same level
    assert slower.shape == (1, 2000) and int(torch.fft.rfft(slower[0]).abs().argmax()) * 16000 / 2000 == 800
    assert float(slower.square().mean()) == pytest.approx(0.5, rel=1e-3)
    plain, varied = task(), task(speed=[0.8, 1.25])
    first, second = plain.batch(3, 0, 1), varied.batch(3, 0, 1)
    assert first.shape == second.shape and not torch.allclose(first, second)
    assert torch.equal(varied.batch(3, 0, 1), second) and torch.equal(task(speed=[1, 1]).batch(3, 0, 1), first)
    with pytest.raises(RecipeError, match="speed"):
        task(speed=[1.2, 0.8])


def test_crops_have_one_loudness_and_turned_phases():
    """DAC's preparation: every crop at so many LUFS, its spectrum's magnitudes as they were."""
    plain, prepared = task(), task(loudness=-30.0, rotate=True)
    one, other = plain.batch(3, 0, 1), prepared.batch(3, 0, 1)
    rate = prepared.codec.sample_rate
    assert [loudness(Audio(row.numpy(), rate)) for row in other] == pytest.approx([-30] * 4, abs=0.2)
    magnitudes = [torch.fft.rfft(batch[:, 0]).abs()[:, 1:-1] for batch in (one, other)]
    gains = magnitudes[1] / magnitudes[0]
    torch.testing.assert_close(gains, gains[:, :1].expand_as(gains), rtol=1e-2, atol=0)
    assert torch.equal(prepared.batch(3, 0, 1), other) and not torch.allclose(one / one.std(), other / other.std())
    wave = one[0]
    torch.testing.assert_close(turned(wave, math.pi), -wave)
    back, own = (torch.fft.rfft(each)[..., 1:-1] for each in (turned(turned(wave, 1.0), -1.0), wave))
    torch.testing.assert_close(back, own)
    assert torch.equal(as_loud(0 * wave, rate, -16), 0 * wave) and as_loud(wave, rate, 40.0).abs().max() == 1


@pytest.fixture
def corpus(tmp_path):
    """Two voices, a manifest each."""
    rows = {"old": [], "new": []}
    for name, seed in (("old", 0), ("new", 1)):
        chance = np.random.default_rng(seed)
        for number in range(3):
            sound = (0.2 * chance.standard_normal((1, 8000))).astype(np.float32)
            write(tmp_path / f"{name}{number}.wav", Audio(sound, 16000))
            rows[name].append({"id": f"{name}{number}", "audio": f"{name}{number}.wav", "duration": 0.5,
                               "speaker": name, "license": "CC0", "source": "noise"})  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    return tmp_path


def recipe(corpus, voice, **changes):
    data = {"corpora": [str(corpus / f"{voice}.jsonl")], "held_out": []}
    said = {f"training.{phase}.data": {"kind": "recordings", **data} for phase in ("reconstruction", "adversarial")}
    return read_recipe("speech-codec", "smoke", {**said, **changes})


def test_a_trained_codec_and_its_judges_go_on_with_another_voice(corpus, tmp_path):
    first = train_recipe(recipe(corpus, "old"), tmp_path / "first")
    saved = {name: read_safetensors(path) for name, path in first.weights("adversarial").items()}
    judges = judges_of("encodec", str(tmp_path / "first"))
    assert all(torch.equal(value, saved["discriminators"][key]) for key, value in judges.state_dict().items())
    changes = {
        "weights": str(tmp_path / "first"),
        "training.adversarial.objective.judges_from": str(tmp_path / "first"),
        "training.adversarial.objective.judge_first": 0,
        "training.adversarial.optimizer.learning_rate": 1e-9,
        "training.adversarial.settings.optimizers.discriminators.learning_rate": 1e-9,
    }
    second = train_recipe(recipe(corpus, "new", **changes), tmp_path / "second", phase="adversarial")
    begun = {name: read_safetensors(path) for name, path in second.weights("adversarial", averaged=False).items()}
    for name in ("codec", "discriminators"):  # at a rate of nothing, they are what they were
        for key, value in begun[name].items():
            if value.is_floating_point() and "quantizer" not in key:
                torch.testing.assert_close(value, saved[name][key], atol=1e-5, rtol=0, msg=f"{name} {key}")
    fresh = judges_of(recipe(corpus, "old").phase("adversarial").objective.options["discriminators"])
    assert any(not torch.equal(value, begun["discriminators"][key]) for key, value in fresh.state_dict().items())


def test_judges_that_are_not_there_are_named(corpus, tmp_path):
    with pytest.raises(RecipeError, match="no run directory"):
        judges_of(None, str(tmp_path))
    changes = {"training.reconstruction.steps": 1}
    train_recipe(recipe(corpus, "old", **changes), tmp_path / "half", phase="reconstruction")
    with pytest.raises(RecipeError, match="no phase that has trained discriminators; it has reconstruction"):
        judges_of(None, str(tmp_path / "half"))
