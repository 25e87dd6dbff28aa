"""Tokens aligned to text: as many as the text has, made of the speech, trained by what is said from them."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from codec_parity import speech_like
from proves import proves
from vivavoce.data.corpora import open_corpus
from vivavoce.encoders.text_queries import TextQueries, TextQueriesConfig, averaged
from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.layouts import build_layout
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.systems.token_streams import token_streams
from vivavoce.tokenizers.text_aligned import build_text_aligned
from vivavoce.training.aligned_task import AlignedTask
from vivavoce.training.assembly import task_for
from vivavoce.training.recipes import train_recipe

TEXTS = ["how are you", "a cat", "one two three four five"]
LENGTHS = torch.tensor([24000, 15000, 20001])


def fresh(seed=0, **overrides):
    """The recipe's smoke size, its codes and units spread over what speech gives."""
    torch.manual_seed(seed)
    codec = vivavoce.build("taste", size="smoke", **overrides).system.codec
    noise = 0.3 * torch.randn(2, 1, codec.sample_rate)
    wave = torch.cat([speech_like(1.0, codec.sample_rate, rows=3, seed=5), noise, torch.zeros_like(noise[:1])])
    with torch.no_grad():
        codec.speech.quantizer.train()
        codec.speech.quantize(codec.speech.encode_latents(wave))
        said = codec.said(["a b c d e f g h i j k l"] * 6, 6)
        codec.train().quantize(codec.encode_latents(wave, said), said.counts)
    return codec.eval()


@pytest.fixture(scope="module")
def codec():
    return fresh()


@pytest.fixture(scope="module")
def waves():
    return speech_like(1.0, 24000, rows=3)


@proves("codec/taste", "mechanism")
@torch.no_grad()
def test_there_are_as_many_codes_as_the_text_has_tokens(codec, waves):
    """Whatever the speech lasts; all tokens of a word have the codes of the word."""
    for size in (24000, 2400):
        said, codes = codec.encode(waves[..., :size], TEXTS)
        wanted = [len(codec.vocabulary.encode(text)) for text in TEXTS]
        assert said.counts.tolist() == wanted and codes.shape == (3, 4, max(wanted))
        assert said.tokens[1, : wanted[1]].tolist() == codec.vocabulary.encode(TEXTS[1])
        assert int(codes.min()) >= 0 and int(codes.max()) < 16 and not bool(codes[1, :, wanted[1] :].any())
    assert said.words[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1] * 12  # a mark of its beginning, and letters
    for row, count in enumerate(said.counts.tolist()):
        for word in said.words[row, :count].unique():
            assert len(codes[row, :, said.words[row] == word].unique(dim=1).T) == 1
    assert len(codes[2, 0].unique()) > 1 and codec.bits_per_token == 16
    x, words = torch.randn(1, 4, 3), torch.tensor([[0, 0, 1, 0]])
    mean = (x[:, 0] + x[:, 1] + x[:, 3]) / 3
    torch.testing.assert_close(averaged(x, words), torch.stack([mean, mean, x[:, 2], mean], dim=1))


@proves("codec/taste", "mechanism")
@torch.no_grad()
def test_codes_hang_on_the_speech_and_on_the_text(codec, waves):
    """One text said otherwise, and other texts of one speech, have other codes; a word does not wait for the next."""
    heard, same = torch.cat([waves[:2], 0.3 * torch.randn(1, 1, 24000), torch.zeros(1, 1, 24000)]), [TEXTS[2]] * 4
    said, codes = codec.encode(heard, same)
    assert len({tuple(row.flatten().tolist()) for row in codes[1:]}) == 3
    vectors = codec.encode_latents(heard, said)
    apart = torch.cdist(vectors.flatten(1), vectors.flatten(1)) + torch.eye(4)
    assert apart.min() > 1e-3 * vectors.norm(dim=-1).mean()  # far beyond rounding, also between two voices
    assert torch.equal(codec.encode(heard, same)[1], codes)
    wrong = "sun moo stars tell joke"
    _, other = codec.encode(waves[:1], [wrong])
    assert other.shape == codes[:1].shape and not torch.equal(other, codes[:1])
    begun = codec.encode_latents(waves[:1], codec.said("one two", 1))
    whole = codec.encode_latents(waves[:1], codec.said(TEXTS[2], 1))
    torch.testing.assert_close(whole[:, : begun.shape[1]], begun, rtol=0, atol=1e-5)


@proves("codec/taste", "mechanism")
@torch.no_grad()
def test_keys_say_where_and_values_what():
    """Values that are everywhere the same leave nothing to choose; keys that are, only their mean."""
    torch.manual_seed(0)
    queries = TextQueries(TextQueriesConfig(20, 16, 2, 2, 32, 12, (1, 2))).eval()
    for parameter in queries.body.parameters():
        parameter.mul_(3.0)
    tokens, counts, heard = torch.randint(3, 20, (1, 5)), torch.tensor([5]), torch.tensor([9])
    keys, values = torch.randn(2, 1, 9, 16)
    constant = values.mean(1, keepdim=True).expand(-1, 9, -1)

    def of(keys, values):
        return queries(tokens, counts, keys, values, heard)

    torch.testing.assert_close(of(keys, constant), of(-keys, constant))
    torch.testing.assert_close(of(keys[:, :1].expand(-1, 9, -1), values), of(keys[:, 1:2].expand(-1, 9, -1), constant))
    assert (of(keys, values) - of(-keys, values)).abs().max() > 0.05
    assert (of(keys, values) - of(keys, values.flip(1))).abs().max() > 0.05
    longer = torch.cat([keys, torch.randn(1, 3, 16)], dim=1), torch.cat([values, torch.randn(1, 3, 16)], dim=1)
    torch.testing.assert_close(of(*longer), of(keys, values))  # frames behind a row's own are not there


@torch.no_grad()
def test_a_row_is_what_it_is_alone(codec, waves):
    said, codes = codec.encode(waves, TEXTS, LENGTHS)
    voice = codec.beside(waves, LENGTHS)["speaker"]
    units, counts = codec.spoken_units(codes, said, speaker=voice, seed=3)
    sound = codec.decode(codes, said, LENGTHS, voice)
    for row, size in enumerate(LENGTHS.tolist()):
        wave, text = waves[row : row + 1, :, :size], TEXTS[row]
        alone, found = codec.encode(wave, text)
        size_of = int(alone.counts[0])
        assert torch.equal(found, codes[row : row + 1, :, :size_of])
        mine = codec.beside(wave)["speaker"]
        unit, count = codec.spoken_units(found, text, speaker=mine, seed=3)
        assert torch.equal(unit[0], units[row, : int(count[0])]) and int(count[0]) == int(counts[row])
        again = codec.decode(found, text, LENGTHS[row : row + 1], mine)
        torch.testing.assert_close(again[0], sound[row, :, :size], rtol=0, atol=1e-4)


@torch.no_grad()
def test_what_is_said_ends_by_itself_or_lasts_as_long_as_it_is_told(codec, waves):
    said, codes = codec.encode(waves, TEXTS)
    units, counts = codec.spoken_units(codes, said, seed=1)
    assert bool((counts >= 3 * said.counts).all() and (counts <= 30 * said.counts).all())
    assert units.shape == (3, int(counts.max())) and int(units.min()) >= 0 and int(units.max()) < 32
    again, _ = codec.spoken_units(codes, said, seed=1)
    other, _ = codec.spoken_units(codes, said, seed=2)
    assert torch.equal(again, units) and not torch.equal(other[:, :9], units[:, :9])
    sound = codec.decode(codes, said, LENGTHS)
    assert sound.shape == (3, 1, 24000) and sound.isfinite().all()
    assert bool(sound[1, :, :15000].any()) and not bool(sound[1, :, 15000:].any())
    assert codec.spoken_units(codes, said, LENGTHS)[1].tolist() == codec.speech.frames(LENGTHS).tolist()
    codec.codebooks = 2
    fewer = codec.encode(waves, TEXTS)[1]
    assert torch.equal(fewer, codes[:, :2]) and codec.bits_per_token == 8
    assert codec.decode(fewer, said, LENGTHS).shape == sound.shape
    codec.codebooks = 4


@torch.no_grad()
def test_the_decoder_hears_text_codes_and_voice(codec, waves):
    """The likelihood of the same units moves with each of them."""
    said, codes = codec.encode(waves, TEXTS)
    vectors, voice = codec.quantizer.decode(codes), codec.beside(waves)["speaker"]
    units = codec.speech.encode(waves)[:, 0]
    counts = torch.full((3,), units.shape[1])

    def scores(said, vectors, voice):
        told, size = codec.decoder.told(said.tokens, vectors, said.counts, voice)
        assert size.tolist() == (said.counts + 3).tolist()
        return codec.decoder.scores(told, size, units, counts)

    whole = scores(said, vectors, voice)
    assert whole.shape == (3, units.shape[1] + 1, 33)
    for other in (scores(codec.said(["hew era yuo", "a dog", "six seven eight nine t"], 3), vectors, voice),
                  scores(said, vectors.flip(0), voice), scores(said, None, voice), scores(said, vectors, 0 * voice)):
        assert (other - whole).abs().max() > 1e-4
    one, size = codec.decoder.told(said.tokens, vectors, said.counts, voice)
    greedy = codec.decoder.scores(one, size, units, counts)[:, :1].argmax(-1)
    torch.testing.assert_close(greedy, whole[:, :1].argmax(-1))
    earlier = codec.decoder.scores(one, size, units.roll(1, 1), counts)[:, 0]
    torch.testing.assert_close(earlier, whole[:, 0])  # a unit does not hear those after it


def test_without_a_text_there_are_no_tokens(codec, waves):
    said, codes = codec.encode(waves, TEXTS)
    for wrong, match in (
        (lambda: codec.encode(waves), "give its text"),
        (lambda: codec.encode(waves, ["a", " ", "b"]), "text 1 is empty"),
        (lambda: codec.encode(waves, TEXTS[:2]), "2 texts for 3 rows"),
        (lambda: codec.encode(waves, ["a", None, "b"]), "text 1: NoneType"),
        (lambda: codec.encode(waves[:1], "a" * 200), "201 tokens, at most 99"),
        (lambda: codec.encode(waves[0], TEXTS[:1]), "waveform"),
        (lambda: codec.decode(codes, ["a", "b", "c"]), "codes of 24 tokens for texts of up to 2"),
        (lambda: codec.decode(codes + 16, said), "codebook 0"),
        (lambda: codec.decode(codes, said, speaker=torch.zeros(3, 5)), "speaker"),
    ):
        with pytest.raises(RequestError, match=match):
            wrong()
    for options, match in (
        ({"queries": {"width": 3}}, "queries.width: it follows"),
        ({"queries": {"source": "somewhere", "layers": 2}}, "queries.layers beside"),
        ({"speech": {"kind": "mimi"}}, "a Codec: a supervised"),
        ({"values": 99}, "layer"),
        ({"unknown": 1}, "'unknown'"),
    ):
        options = {**dict(read_recipe("taste", "smoke").tokenizers["taste"].options), **options}
        with pytest.raises(RequestError, match=match):
            build_text_aligned(**options)


def test_a_language_models_streams_stand_in_columns(codec, waves):
    """Without a rate of its own the stream is in the text's order: a token and its codes share a column."""
    text, voice = {"tokenizer": "words", "clock": "order"}, {"tokenizer": "taste", "clock": "order"}
    recipe = read_recipe({
        "system": "aligned", "sample_rate": 24000, "streams": {"text": text, "voice": voice},
        "tokenizers": {"words": {"kind": "sentencepiece"},
                       "taste": read_recipe("taste", "smoke").tokenizers["taste"].model_dump()},
    })  # fmt: skip
    streams = token_streams(recipe, {"words": codec.vocabulary, "taste": codec})
    assert (streams["voice"].spec.levels, streams["voice"].spec.rate, streams["voice"].size) == (4, None, 16)
    said, codes = codec.encode(waves[:1], TEXTS[0])
    layout = build_layout({"kind": "text-aligned", "form": "columns"}, [s.spec for s in streams.values()])
    count = said.counts[:1]
    places = layout.place({"text": count, "voice": count})
    columns = {name: [] for name in streams}
    for stream, index, column in zip(*(part[0].tolist() for part in (places.stream, places.index, places.column))):
        columns[list(streams)[stream]].append((index, column))
    assert sorted(set(columns["text"])) == sorted(set(columns["voice"])) and len(columns["voice"]) == 4 * int(count)
    assert streams["voice"].values(codes[0], "voice").shape == (4, int(count))
    with pytest.raises(RequestError, match="give its text"):
        streams["voice"].values(vivavoce.Audio(waves[0].numpy(), 24000), "voice")


def trained(codec, clips, texts, heard, steps, rate, **options):
    """A task's losses while it learns from one batch, on which the parts that stay are asked once."""
    task = AlignedTask(codec, clips, texts=texts, heard=heard, **options)
    batch = task.batch(0, 0, 1)
    heard_of = batch["wave"], batch["lengths"]
    frames, units = codec.frames_of(*heard_of), codec.speech.encode(*heard_of)
    optimizer, logs = torch.optim.Adam([p for p in codec.parameters() if p.requires_grad], rate), []
    codec.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "frames_of", lambda wave, lengths: frames, raising=False)
        patch.setattr(codec.speech, "encode", lambda wave, lengths: units)
        for step in range(steps):
            for _, losses in task.updates(batch, step):
                optimizer.zero_grad()
                losses["loss"].backward()
                optimizer.step()
                logs.append({name: float(value.detach()) for name, value in losses.items()})
    codec.eval()
    return task, logs


@proves("codec/taste", "mechanism")
def test_training_lowers_the_loss_on_recorded_speech(pack):
    """Through codes of every token; encoder and units stay, queries, codebooks and decoder learn."""
    said = [clip for clip in open_corpus(pack / "manifests" / "an4.jsonl").clips if clip.text]
    short = sorted(said, key=lambda clip: clip.duration)[:4]
    clips = [torch.from_numpy(clip.load(24000).mono().samples) for clip in short]
    texts = [clip.text for clip in short]
    codec = fresh()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    held_out = {"held_out": clips[:2], "held_out_texts": texts[:2]}
    task, logs = trained(codec, clips, texts, "codes", 20, 1e-2, batch=4, **held_out)
    assert logs[-1]["units"] < 0.85 * logs[0]["units"] and logs[-1]["accuracy"] > logs[0]["accuracy"]
    changed = {name.split(".")[0] for name, value in codec.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"queries", "quantizer", "decoder"}
    taught = {name for name, p in codec.named_parameters() if p.requires_grad and p.grad is not None and p.grad.any()}
    assert {"queries.table.weight", "queries.body.layers.0.cross.kv.weight", "quantizer.input_projection.weight",
            "decoder.balance", "decoder.vector_in.weight"} <= taught  # fmt: skip
    with torch.no_grad():
        figures = task.evaluate(0)
    assert figures["units"] > 0 and figures["used/0"] >= 1 and 0 <= figures["accuracy"] <= 1


def test_clips_without_texts_are_left_out_and_told(codec):
    clips = [torch.zeros(1, 24000)] * 4
    task = AlignedTask(codec, clips, texts=["a b", "", "c" * 300, "d"], seconds=2.0)
    assert task.usable == [0, 3]
    lines = task.show(task.batch(0, 0, 1))
    assert "2 of 4 clips" in lines[0] and "text of clip 1 is empty" in lines[1] and "301 tokens" in lines[2]
    assert lines[3] in ("1.00 s, 4 tokens, 50 units: 'a b'", "1.00 s, 2 tokens, 50 units: 'd'")
    with pytest.raises(DataError, match=r"transcripts.*clip 0 is empty"):
        AlignedTask(codec, clips[:1], texts=[""])
    with pytest.raises(DataError, match=r"clip 0 lasts 1\.0 s"):
        AlignedTask(codec, clips[:1], texts=["a"], seconds=0.5)
    with pytest.raises(RecipeError, match="heard"):
        AlignedTask(codec, clips, heard="all")
    with pytest.raises(RecipeError, match="text_aligned"):
        AlignedTask(codec.speech, clips)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The recipe's smoke size, trained by all its phases on a corpus with transcripts; the corpus."""
    corpus = tmp_path_factory.mktemp("corpus")
    for speaker in (1, 2):
        place = corpus / str(speaker) / "5"
        place.mkdir(parents=True)
        wave = speech_like(0.8, 16000, rows=2)[speaker - 1].numpy()
        vivavoce.write(place / f"{speaker}-5-0.flac", vivavoce.Audio(wave, 16000))
        (place / f"{speaker}-5.trans.txt").write_text(f"{speaker}-5-0 SO MANY WORDS\n")
    recipe = read_recipe("taste", "smoke")
    said = {"kind": "recordings", "corpora": [str(corpus)], "held_out": ["librispeech_2"]}
    recipe = read_recipe("taste", "smoke", {f"training.{phase.name}.data": said for phase in recipe.training})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vivavoce.training.report.write_report", lambda run: None)
        return train_recipe(recipe, tmp_path_factory.mktemp("taste") / "run"), corpus


@proves("codec/taste", "recipe")
def test_the_recipe_trains_and_speaks(run):
    """Each phase changes what it is there for; as many samples come out as go in, a set of codes for each token."""
    from vivavoce.nn.weights import read_safetensors

    done, _ = run
    recipe = read_recipe("taste", "smoke")
    weights = {phase.name: read_safetensors(done.weights(phase.name)["codec"]) for phase in recipe.training}
    weights["begun"] = vivavoce.build("taste", size="smoke").system.codec.state_dict()

    def changed(one, other):
        both = weights[one].items()
        return {".".join(name.split(".")[:4 if "queries.body" in name else 1])
                for name, value in both if not torch.equal(value, weights[other][name])}  # fmt: skip

    assert changed("text", "begun") == {"decoder"}
    assert changed("vectors", "text") <= {"decoder", "queries", "queries.body.layers.1"}
    assert "quantizer" in changed("codes", "vectors") and "queries.body.layers.0" not in changed("codes", "begun")
    model = vivavoce.load(done.path)
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 12345)).astype(np.float32)
    audio = vivavoce.Audio(noise, 24000)
    made = model.resynth(audio, "hello you")
    assert made.audio.samples.shape == noise.shape and np.isfinite(made.audio.samples).all()
    assert made.codes.shape == (4, 10) and made.bits_per_second == pytest.approx(10 * 16 / (12345 / 24000))
    several = model.resynth([audio, audio], ["hello you", "no"])
    np.testing.assert_array_equal(several[0].codes, made.codes)
    with pytest.raises(RequestError, match="give its text"):
        model.resynth(audio)
    with pytest.raises(RequestError, match="leave text out"):
        vivavoce.build("dmel", size="smoke").resynth(audio, "hello")


def test_the_command_takes_the_text(run, command, tmp_path):
    source, output = tmp_path / "in.wav", tmp_path / "out.wav"
    vivavoce.write(source, vivavoce.Audio(0.1 * np.ones((1, 8000), np.float32), 16000))
    code, out, err = command("resynth", run[0].path, source, "--text", "a b", "-o", output, "--json")
    told = json.loads(out)
    assert code == 0 and told["frames"] == 4 and told["bits_per_second"] == 128 and told["tokens_per_second"] == 32, err
    assert vivavoce.read(output).samples.shape == (1, 12000)
    code, _, err = command("resynth", run[0].path, source, "-o", output)
    assert code == 2 and "give its text" in err
    code, _, err = command("encode", run[0].path, source, "-o", tmp_path / "out.vvc")
    assert code == 2 and "tokens of text" in err
    code, _, err = command("tokenize", run[0].path, run[1], "-o", tmp_path / "store")
    assert code == 2 and "tokens of text" in err


def test_a_corpus_without_transcripts_is_refused(run, tmp_path):
    vivavoce.write(tmp_path / "a.wav", vivavoce.Audio(np.zeros((1, 8000), np.float32), 16000))
    about = {"id": "a", "audio": "a.wav", "duration": 0.5, "text": None, "license": "unknown", "source": "unknown"}
    (tmp_path / "mute.jsonl").write_text(json.dumps(about) + "\n")
    said = {"training.codes.data": {"kind": "recordings", "corpora": [str(tmp_path / "mute.jsonl")], "held_out": []}}
    recipe = read_recipe("taste", "smoke", said)
    with pytest.raises(DataError, match="a corpus with transcripts is needed"):
        task_for(recipe, recipe.training[-1], assemble(recipe))


def test_trained_units_come_from_a_directory(codec, tmp_path):
    """A codec directory, or a run of its recipe; the saved model needs neither, nor the file of the text."""
    speech = vivavoce.build("cosyvoice", size="smoke")
    speech.save(tmp_path / "run")
    vivavoce.codecs.save_codec(speech.system.codec, tmp_path / "codec")
    for place in ("run", "codec"):
        recipe = read_recipe("taste", "smoke").model_dump(mode="json")
        recipe["tokenizers"]["taste"]["speech"] = {"source": str(tmp_path / place)}
        model = vivavoce.build(recipe)
        mine = model.system.codec.speech.state_dict()
        assert all(torch.equal(value, mine[name]) for name, value in speech.system.codec.state_dict().items())
        model.save(tmp_path / f"saved-{place}")
        assert str(tmp_path / place) not in (tmp_path / f"saved-{place}" / "recipe.yaml").read_text()
        assert (tmp_path / f"saved-{place}" / "taste.model").is_file()
        again = vivavoce.load(tmp_path / f"saved-{place}").system.codec
        wave = speech_like(0.3, 24000)
        assert torch.equal(again.encode(wave, "so")[1], model.system.codec.encode(wave, "so")[1])
