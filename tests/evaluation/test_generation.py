"""Scores of generated speech: known voices through a real recogniser, published formats, and the command."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vivavoce
from published_models import ctc_recogniser, text_lm
from vivavoce.audio import Audio, read, write
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.diversity import auto_bleu, repeated_ngrams, self_bleu, spoken_words, written_words
from vivavoce.evaluation.harness import collect

pytest.importorskip("transformers")
pytest.importorskip("pocketsphinx")
SENTENCE = "examples/recordings/sentence-librispeech.wav"
SHORT = {"prompt": 1.0, "shortest": 1.5}


class Voice:
    """Goes on with `said(prompt, seconds, seed)`; what it hears it says again as it is."""

    verbs, tasks, fingerprint = {"reply": "native", "resynth": "native"}, {"continue": ("audio",)}, "voice"

    def __init__(self, said):
        self.said, self.asked = said, []

    def reply(self, turns, task, seed, seconds):
        ((role, audio),) = turns
        assert role == "user" and task == "continue"
        self.asked.append((audio.duration, seconds, seed))
        return SimpleNamespace(audio=self.said(audio, seconds, seed))

    def resynth(self, audio):
        return SimpleNamespace(audio=audio)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with the two halves of a sentence and a lone number, which is too short to be asked about."""
    folder = tmp_path_factory.mktemp("recordings")
    sentence = read(SENTENCE).mono().resample(16000)
    number = read("examples/recordings/seven-george.wav").mono().resample(16000)
    for name, audio in {"a": sentence[:2.2], "b": sentence[2.2:], "c": number}.items():
        write(folder / f"{name}.wav", audio)
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """A recogniser of letters and a text model with their directories."""
    folders = [tmp_path_factory.mktemp(name) for name in ("ctc", "lm")]
    return folders, ctc_recogniser(folders[0]), text_lm(folders[1])


def results_of(model, folder, out=None, **settings):
    asked = task("generation", **{**SHORT, "transcriber": "pocketsphinx", "lm": None, **settings})
    return {(r.metric, r.group): r for r in evaluate(model, asked, folder, out)}


def rest_of(folder):
    """Says exactly how the recording goes on whose beginning it hears."""
    whole = [read(path).mono().samples[0] for path in sorted(folder.glob("*.wav"))]

    def said(audio, seconds, seed):
        heard = audio.samples[0]
        (found,) = [wave for wave in whole if np.array_equal(wave[: len(heard)], heard)]
        return Audio(found[None, len(heard) : len(heard) + round(seconds * 16000)], 16000)

    return said


def test_who_goes_on_as_the_recording_does_scores_as_it_does(recordings, judges):
    perfect = Voice(rest_of(recordings))
    found = results_of(perfect, recordings, transcriber=str(judges[0][0]))
    durations = [read(recordings / name).duration for name in ("a.wav", "b.wav")]
    assert [(first, seed) for first, _, seed in perfect.asked] == [(1.0, 0), (1.0, 1)]
    assert [seconds for _, seconds, _ in perfect.asked] == pytest.approx([length - 1.0 for length in durations])
    for metric in ("auto-BLEU-2 (slam)", "auto-BLEU-2 (gslm)", "self-BLEU-2 (gslm)", "VERT-2 (gslm)", "words"):
        one, other = found[metric, "generated"], found[metric, "recorded"]
        assert one.value == pytest.approx(other.value) and one.count == other.count == 2
    assert found["words", "recorded"].value > 3
    assert not [metric for metric, _ in found if "PP" in metric], "no text model, no perplexity"


def test_who_says_one_thing_again_and_again_is_found_out(recordings):
    words = read(SENTENCE).mono()[0.2:0.7]  # "when it's"

    def stutter(audio, seconds, seed):
        return Audio(np.tile(words.samples, 4), words.sample_rate)

    scored, _ = collect(
        Voice(stutter), task("generation", transcriber="pocketsphinx", lm=None, whole=False, **SHORT), recordings
    )
    said = [spoken_words(one.artefact["text"]) for one in scored if one.item.group == "generated"]
    assert said[0] == said[1] and len(said[0]) > 4
    rows = {(r.metric, r.group): r.value for r in task("generation", lm=None).summarize(scored)}
    repeats = 100 * auto_bleu(said[0])
    assert rows["auto-BLEU-2 (gslm)", "generated"] == pytest.approx(repeats) and repeats > 70
    assert rows["self-BLEU-2 (gslm)", "generated"] == 100
    assert rows["VERT-2 (gslm)", "generated"] == pytest.approx(math.sqrt(repeats * 100))
    others = [spoken_words(one.artefact["text"]) for one in scored if one.item.group == "recorded"]
    assert rows["self-BLEU-2 (gslm)", "recorded"] == pytest.approx(100 * np.mean(self_bleu(others)))
    for metric in ("auto-BLEU-2 (slam)", "auto-BLEU-2 (gslm)", "self-BLEU-2 (gslm)", "VERT-2 (gslm)"):
        assert rows[metric, "generated"] > rows[metric, "recorded"] + 30, metric


def nats_a_token(model, ids):
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(found[at, id]) for at, id in enumerate(ids[1:])) / (len(ids) - 1)


def test_perplexity_is_the_text_models_of_what_the_recogniser_writes(recordings, judges):
    (ctc, lm), (heard, processor), (model, tokenizer) = judges

    def louder(audio, seconds, seed):
        return Audio(audio.samples[:, ::-1] * 0.5, 16000)

    asked = task("generation", transcriber=str(ctc), lm=str(lm), seconds=1.0, whole=False, **SHORT)
    scored, _ = collect(Voice(louder), asked, recordings)
    mine = [one for one in scored if one.item.group == "generated"]
    texts = []
    for one in mine:
        audio = one.item.expected.load().mono()[:1.0].samples[:, ::-1] * 0.5
        given = processor(np.clip(audio[0], -1, 1), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            texts.append(processor.batch_decode(heard(**given).logits.argmax(-1))[0].strip())
    assert [one.artefact["text"] for one in mine] == texts and all(spoken_words(text) for text in texts)
    rows = {(r.metric, r.group): r for r in asked.summarize(scored)}
    slam = [nats_a_token(model, tokenizer(text)["input_ids"]) for text in texts]
    plain = [tokenizer(" ".join(spoken_words(text)), add_special_tokens=False)["input_ids"] for text in texts]
    gslm = np.exp([nats_a_token(model, [0, *ids, 1]) for ids in plain])
    assert rows["GenPPL (slam)", "generated"].value == pytest.approx(np.exp(np.mean(slam)), rel=1e-4)
    assert rows["PPX (gslm), mean", "generated"].value == pytest.approx(np.mean(gslm), rel=1e-4)
    assert rows["PPX (gslm), median", "generated"].value == pytest.approx(np.median(gslm), rel=1e-4)
    repeats = 100 * np.mean([repeated_ngrams(written_words(text)) for text in texts])
    assert rows["auto-BLEU-2 (slam)", "generated"].value == pytest.approx(repeats)
    low = rows["GenPPL (slam)", "generated"]
    assert low.low < low.value < low.high and not low.higher_is_better


def test_silence_is_no_text_and_is_counted(recordings, judges):
    named = {"transcriber": str(judges[0][0]), "lm": str(judges[0][1])}

    def quiet(audio, seconds, seed):
        return Audio(np.zeros((1, 0), np.float32), 16000)

    found = results_of(Voice(quiet), recordings, whole=False, **named)
    silent = found["GenPPL (slam)", "generated"]
    assert math.isnan(silent.value) and silent.note == "2 of 2 texts too short"
    words = found["words", "generated"]
    assert (words.value, words.high) == (0, 0) and found["VERT-2 (gslm)", "generated"].value == 0
    assert math.isfinite(found["GenPPL (slam)", "recorded"].value)
    many = results_of(Voice(rest_of(recordings)), recordings, words=100, **named)
    assert many["PPX (gslm), mean", "recorded"].note == "2 of 2 texts too short"


def test_a_unit_model_by_one_command(recordings, judges, tmp_path, command):
    (ctc, lm), _, _ = judges
    vivavoce.build("gslm", size="smoke").save(tmp_path / "model")
    settings = {**SHORT, "seconds": 0.6, "clips": 2, "transcriber": ctc, "lm": lm, "temperatures": "[0.0,1.5]"}
    chosen = [part for name, value in settings.items() for part in ("--set", f"generation.{name}={value}")]
    arguments = ["eval", tmp_path / "model", "--task", "generation", "--data", recordings, "--out", tmp_path / "out",
                 "--json", "--device", "cpu"]  # fmt: skip
    code, out, error = command(*arguments, *chosen)
    assert code == 0, error
    rows = {(row["metric"], row["group"]): row for row in map(json.loads, out.splitlines())}
    groups = {group for _, group in rows}
    assert groups == {"recorded", "temperature 0", "temperature 1.5"}
    assert {row["count"] for (metric, _), row in rows.items() if metric == "words"} == {2}
    assert all(math.isfinite(rows["GenPPL (slam)", group]["value"]) for group in groups)
    kept = tmp_path / "out" / "generation" / "artefacts.jsonl"
    answers = kept.read_text()
    said = {row["id"]: row["artefact"] for row in map(json.loads, answers.splitlines())}
    assert len(said) == 6 and all(said[f"temperature 0/{name}"]["seconds"] > 1.0 for name in ("a", "b"))
    # another text model, and none: what was said and written down stays
    code, again, _ = command(*arguments, *chosen, "--set", "generation.lm=null")
    assert code == 0 and kept.read_text() == answers and "GenPPL" not in again
    code, _, error = command(*arguments, *chosen, "--set", "generation.lm=nothing")
    assert code == 2 and "no text language model 'nothing'" in error


def test_sampling_is_changed_for_the_questions_and_for_no_longer(recordings, judges):
    model = vivavoce.build("gslm", size="smoke")
    own, seen = model.system.sampling, []

    class Watched(Voice):
        system, device = model.system, "cpu"

    def said(audio, seconds, seed):
        (found,) = model.system.sampling.values()
        seen.append((found.temperature, found.top_k, found.repetition_penalty, found.window))
        return Audio(np.zeros((1, 0), np.float32), 16000)

    changes = {"top_k": 7, "repetition_penalty": 1.1}
    named = {"transcriber": str(judges[0][0]), "clips": 1}
    results_of(Watched(said), recordings, sampling=changes, temperatures=[0.3, 1.5], **named)
    assert seen == [(0.3, 7, 1.1, 64), (1.5, 7, 1.1, 64)] and model.system.sampling is own
    with pytest.raises(RecipeError, match=r"generation\.sampling: option 'top_q' is unknown"):
        results_of(Watched(said), recordings, sampling={"top_q": 1}, **named)
    assert model.system.sampling is own
    with pytest.raises(RequestError, match="does not choose by our"):
        results_of(Voice(said), recordings, temperatures=[0.5], **named)


@pytest.mark.parametrize(
    "settings,error,message",
    [
        ({"shortest": 60.0}, DataError, "no recording of 60 s"),
        ({"temperatures": [0.5, 0.5]}, RequestError, "name each once"),
        ({"temperatures": [-1.0]}, RequestError, "temperatures"),
        ({"prompt": 0.0}, RequestError, "prompt"),
        ({"transcriber": "nothing"}, RequestError, "nothing"),
    ],
)
def test_what_cannot_be_asked_is_said(recordings, settings, error, message):
    with pytest.raises(error, match=message):
        results_of(Voice(rest_of(recordings)), recordings, **settings)


def test_only_a_model_that_goes_on_is_asked(recordings):
    with pytest.raises(RequestError, match=r"go on with what it hears .* this one has answer"):
        results_of(SimpleNamespace(verbs=("reply",), tasks={"answer": ("audio",)}), recordings)
    with pytest.raises(DataError, match="--data"):
        results_of(Voice(None), None)
