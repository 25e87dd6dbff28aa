"""Codecs beside each other: known codecs give known values, each number says whose rules it follows."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from peers import peer
from vivavoce.audio import Audio
from vivavoce.cli import app
from vivavoce.codecs import save_codec
from vivavoce.codecs.registry import codec_of
from vivavoce.errors import CheckpointError, DataError, RequestError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.codec_models import codec_named, delay
from vivavoce.evaluation.codec_report import compare, curve, family, markdown, save
from vivavoce.evaluation.opus import OpusCodec
from vivavoce.evaluation.speakers import load_speaker_encoder

peer("pystoi")
peer("pesq")
peer("av")
QUICK = {"measures": ("stoi", "pesq"), "seconds": 2.0}
TINY = {"kind": "spectral_codec", "stem": 8, "widths": [8], "dim": 8, "mels": 20, "fft_size": 320, "codebooks": 3}


class Coarse:
    """A "codec" that keeps `bits` bits of each sample: its codes are the samples' signs."""

    verbs, codebook_sizes, delay = ("resynth",), (2,), 0.02

    def __init__(self, bits):
        self.bits, self.fingerprint = bits, f"coarse{bits}"

    def resynth(self, audio):
        step = 2.0 ** (1 - self.bits)
        sound = Audio((np.round(audio.samples / step) * step).astype(np.float32), audio.sample_rate)
        codes = (audio.samples > 0).astype(int)
        return SimpleNamespace(
            audio=sound, codes=codes, bits_per_second=self.bits * 16000.0, tokens_per_second=16000.0
        )


def value(results, metric, group=""):
    return next(r for r in results if r.metric == metric and r.group == group)


def test_numbers_name_their_rules_and_intervals_are_over_speakers(pack):
    chosen = task("codec", corpora=("an4", "librispeech_other/ls_1688"), clips=3, **QUICK)
    results = evaluate(Coarse(6), chosen, pack)
    stoi, pesq = value(results, "STOI [versa]"), value(results, "PESQ-WB [versa]")
    assert 0.5 < stoi.low <= stoi.value <= stoi.high < 1 and 1 < pesq.value < 4 and stoi.count == 6
    assert value(results, "bits per second [vivavoce]").value == 96000
    assert value(results, "delay [vivavoce]").value == pytest.approx(0.02)
    used = value(results, "codebook entries in use [vivavoce]", "codebook 0")
    spread = value(results, "codebook perplexity [vivavoce]", "codebook 0")
    assert used.value == 2 and used.note == "of 2" and 1.5 < spread.value <= 2
    by_other_rules = evaluate(Coarse(6), task("codec", rules="codec-superb", corpora=("an4",), clips=2, **QUICK), pack)
    assert {r.metric for r in by_other_rules} >= {"STOI [codec-superb]", "PESQ-WB [codec-superb]"}


def test_more_bits_are_better_in_every_measure(pack):
    peer("parselmouth")
    some = {"measures": ("stoi", "si_sdr", "mel", "stft", "voicing"), "corpora": ("an4",), "clips": 2, "seconds": 2.0}
    fine, coarse = (evaluate(Coarse(bits), task("codec", **some), pack) for bits in (12, 5))
    for metric in ("STOI [versa]", "SI-SNR [versa]", "V/UV F1 [vivavoce]"):
        assert value(fine, metric).value > value(coarse, metric).value
    for metric in ("mel distance [codec-superb]", "STFT distance [codec-superb]"):
        assert value(fine, metric).value < value(coarse, metric).value
    assert value(fine, "F0 error [vivavoce]").value < 5 and value(fine, "V/UV F1 [vivavoce]").value > 0.95


def test_opus_has_the_rate_that_its_packets_have(speech_files):
    from vivavoce.audio import read

    speech = read(speech_files[0], 16000, mono=True)[:3.0]
    found = {rate: OpusCodec(rate).resynth(speech) for rate in (6, 24)}
    for rate, made in found.items():
        assert len(made.audio) == len(speech) and made.bits_per_second == pytest.approx(1000 * rate, rel=0.3)
    errors = {rate: np.abs(made.audio.samples - speech.samples).mean() for rate, made in found.items()}
    assert errors[24] < errors[6] < 0.7 * np.abs(speech.samples).mean() + errors[24]  # in step with its input
    with pytest.raises(RequestError, match="opus:3"):
        OpusCodec(3)


def test_codecs_by_name_at_their_rates(tmp_path):
    torch.manual_seed(0)
    save_codec(codec_of(TINY), tmp_path / "tiny")
    two, all_ = codec_named(f"{tmp_path / 'tiny'}:2"), codec_named(str(tmp_path / "tiny"))
    sound = Audio(0.1 * np.random.default_rng(0).standard_normal((1, 5001)).astype(np.float32), 16000)
    assert two.resynth(sound).codes.shape[0] == 2 and all_.resynth(sound).codes.shape[0] == 3
    assert len(two.resynth(sound).audio) == 5001
    assert two.fingerprint != all_.fingerprint and two.delay == pytest.approx(0.02)  # causal: its frame
    assert codec_named("opus:6").kilobits == 6
    with pytest.raises(RequestError, match="opus:KBITS"):
        codec_named("opus:fast")
    assert math.isnan(delay(object()))


def test_a_recogniser_that_knows_the_clips_sentences_alone(pack):
    """And recordings as they are, to read its figures against."""
    peer("pocketsphinx")
    chosen = task("codec", corpora=("fsdd",), clips=20, measures=("stoi",), seconds=0.0, recogniser="closed")
    fine, coarse = (evaluate(model, chosen, pack) for model in (codec_named("original"), Coarse(2)))
    heard = [value(results, "sentence heard, of 10 [vivavoce]") for results in (fine, coarse)]
    assert heard[0].value > 0.7 and heard[1].value < heard[0].value - 0.2 and heard[0].count == 20
    assert value(fine, "bits per second [vivavoce]").value == 16 * 16000


def test_a_run_that_still_trains_is_measured_as_far_as_it_is(tmp_path):
    from vivavoce.schema import read_recipe
    from vivavoce.systems import assemble
    from vivavoce.training import RunDirectory
    from vivavoce.training.checkpoint import Checkpoint
    from vivavoce.training.checkpoint import save as save_checkpoint

    recipe = read_recipe("speech-codec-3k", "smoke")
    run = RunDirectory.open(tmp_path / "run", recipe.model_dump(mode="json", exclude_none=True))
    torch.manual_seed(3)
    trained = assemble(recipe).system.codec
    state = {"optimizers": {}, "task": {}, "window": {}}
    made = Checkpoint(5, 1.0, False, {"codec": trained.state_dict()}, state)
    save_checkpoint(made, run.checkpoints("reconstruction"), 1)
    found = codec_named(f"{run.path}:reconstruction:4")
    assert found.tokenizer.codebooks == 4 and codec_named(f"{run.path}:reconstruction").tokenizer.codebooks == 3
    for key, value in trained.state_dict().items():
        assert torch.equal(value, found.tokenizer.state_dict()[key]), key
    with pytest.raises(RequestError, match="no phase 'polish'"):
        codec_named(f"{run.path}:polish")


def test_one_table_one_picture_one_page(pack, tmp_path):
    chosen = task("codec", corpora=("an4",), clips=2, **QUICK)
    codecs = {"coarse:5": Coarse(5), "coarse:12": Coarse(12), "opus:6": OpusCodec(6)}
    measured = compare(codecs, chosen, pack, tmp_path / "out")
    page = save(measured, chosen, tmp_path / "out").read_text()
    assert page.count("<audio") == 8 and page.count("<img") == 8  # two clips by three codecs, and as they are
    assert "STOI [versa]" in page and "2 clips of" in page
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {line["codec"] for line in lines} == set(codecs) and {line["rules"] for line in lines} == {"versa"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.splitlines()[0] == "| | coarse:5 | coarse:12 | opus:6 |" and "| PESQ-WB [versa] | 1." in table
    picture = (tmp_path / "out" / "rate-quality.svg").read_text()
    assert picture.count("<circle") == 6 and picture.count("<polyline") == 4  # two charts; coarse is one curve of two
    assert family("runs/a:8") == family("runs/a:4") == "a" and curve(measured, "tokens nobody has") == ""
    again = compare({"coarse:5": Coarse(5)}, chosen, pack, tmp_path / "out")  # answers are there; values are the same
    assert markdown(again).splitlines()[2].split(" | ")[1].rstrip(" |") in table.splitlines()[2]


def test_the_command_compares(pack, tmp_path):
    torch.manual_seed(0)
    save_codec(codec_of(TINY), tmp_path / "tiny")
    names = [str(tmp_path / "tiny"), f"{tmp_path / 'tiny'}:1", "opus:6"]
    settings = ["--set", "codec.corpora=[an4]", "--set", "codec.measures=[stoi]", "--set", "codec.seconds=1"]
    given = ["eval", *names, "--task", "codec", "--data", str(pack), "--limit", "1", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, *settings, "--rules", "codec-superb", "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["codec"] for row in rows} == set(names)
    assert any(row["metric"] == "STOI [codec-superb]" for row in rows)
    assert (tmp_path / "out" / "report.html").exists()
    wrong = CliRunner().invoke(app, ["eval", "mini", "--rules", "versa"])
    assert isinstance(wrong.exception, RequestError) and "--task codec" in str(wrong.exception)


def test_what_cannot_be_measured_is_refused(pack, tmp_path):
    with pytest.raises(RequestError, match="loudness"):
        task("codec", measures=("loudness",))
    with pytest.raises(RequestError, match="rules"):
        task("codec", rules="slt")
    with pytest.raises(DataError, match="nobody"):
        task("codec", corpora=("an4/nobody",)).items(pack)
    with pytest.raises(DataError, match="corpora"):
        task("codec", corpora=("nothing",)).items(pack)
    with pytest.raises(DataError, match="--data"):
        task("codec").items(None)
    with pytest.raises(RequestError, match="no codecs"):
        compare({}, task("codec"), pack)


def tiny_speaker_encoder(folder):
    transformers = peer("transformers")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8, 8],
        conv_kernel=[10, 8], conv_stride=[5, 64], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        tdnn_dim=[8, 8], tdnn_kernel=[3, 1], tdnn_dilation=[1, 1], xvector_output_dim=12,
    )  # fmt: skip
    transformers.Wav2Vec2ForXVector(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return str(folder)


def test_voices_and_words_are_judged_by_models_that_are_named(pack, tmp_path):
    peer("pocketsphinx")
    peer("jiwer")
    place = tiny_speaker_encoder(tmp_path / "xvectors")
    some = {"measures": ("stoi",), "corpora": ("an4",), "clips": 1, "seconds": 0.0}
    chosen = task("codec", speaker=place, recogniser="pocketsphinx", **some)
    fine, coarse = (evaluate(Coarse(bits), chosen, pack) for bits in (14, 3))
    voice, words = f"speaker similarity ({place}) [vivavoce]", "word error rate (pocketsphinx) [vivavoce]"
    assert value(fine, voice).value > 0.99 and value(coarse, voice).value < value(fine, voice).value
    assert value(coarse, words).value > value(fine, words).value and value(fine, words).unit == "%"
    with pytest.raises(CheckpointError, match="no encoder of x-vectors"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text("{}")
        load_speaker_encoder(str(tmp_path / "other"))
