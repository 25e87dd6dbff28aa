"""A causal codec taught by one that hears the whole signal: what is compared, that it is learned, and how many codes
agree."""

import pytest
import torch

import vivavoce
from codec_families import narrow
from codec_parity import spread
from codecs_recipes import learned
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.codecs.registry import config_of
from vivavoce.errors import RecipeError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.feature_task import FeatureTask
from vivavoce.training.supervision import Supervision
from vivavoce.training.teacher_codec import TeacherCodec

TINY = {"seconds": 0.25, "batch": 2, "mel": {"windows": [128], "mels": [8]}}


@pytest.fixture(scope="module")
def speech(speech_files):
    """Quarters of a second of recorded speech at 8 and at 16 kHz, [1, samples] each."""
    said = vivavoce.read(speech_files[0]).samples[:, 8000:48000]
    eight = vivavoce.audio.resample(said, 16000, 8000)
    return {rate: list(torch.from_numpy(wave).split(rate // 4, dim=1)) for rate, wave in ((8000, eight), (16000, said))}


@pytest.fixture(scope="module")
@torch.no_grad()
def pair(tmp_path_factory, speech):
    """The run of an amplitude-and-phase codec that hears the whole signal, and the codec, whose codes differ."""
    teacher = narrow("apcodec")
    points = teacher.encode_latents(torch.stack(speech[8000])).flatten(0, 1)
    for number, book in enumerate(teacher.quantizer.levels):
        book.load(spread(points, book.size, number))
        points = points - book.lookup(book.search(points))
    recipe = read_recipe("apcodec", "smoke", {"sample_rate": 8000, "tokenizers.codec": config_of(teacher)})
    model = assemble(recipe)
    model.system.codec.load_state_dict(teacher.state_dict())
    folder = tmp_path_factory.mktemp("teacher")
    model.save(folder)
    return folder, teacher


def student_of(teacher):
    torch.manual_seed(1)
    return codec_of({**config_of(teacher), "causal": True})


@proves("apcodec", "mechanism")
def test_a_causal_student_comes_to_agree_with_its_teacher(pair, speech):
    """A fresh student gives other codes; it learns the latents of a teacher named by its run, and by the teacher's
    codebooks most of its codes."""
    folder, teacher = pair
    student, clips = student_of(teacher), speech[8000][:2]
    task = CodecTask(
        student, clips, held_out=clips, **TINY, weights={"mel": 0, "wave": 0},
        supervision={"teacher": {"model": str(folder), "codebooks": True, "terms": {"latents": 1, "wave": 0.01}}},
    )  # fmt: skip
    term = task.supervision.teacher
    assert torch.equal(term.teacher.encode(clips[0][None]), teacher.encode(clips[0][None]))
    assert not list(task.supervision.state_dict())  # the teacher is where it was read from
    with torch.no_grad():
        before = task.evaluate(0)
    logs = learned(task, 20, ["codec.encoder"])
    with torch.no_grad():
        after = task.evaluate(0)
    assert logs[-1]["teacher"] < 0.5 * logs[0]["teacher"]
    assert {name for name in after if name.startswith("agreement")} == {f"agreement/{level}" for level in range(4)}
    assert before["agreement/0"] < 0.4 and after["agreement/0"] > 0.6, (before, after)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, term.teacher.state_dict()[name])
        assert torch.equal(value, student.state_dict()[name]) or not name.startswith("quantizer")
    with torch.no_grad():
        same = term.agreement(teacher, clips[0][None], teacher.encode(clips[0][None]))
    assert set(same.values()) == {1.0}


@proves("focalcodec", "mechanism")
def test_features_then_codes_are_those_of_a_codec_that_is_not_causal(speech):
    """FocalCodec-Stream's first stages: what is trained, and that on other speech features, and then bits, come nearer
    to those of a codec that hears the whole signal."""
    mel = {"kind": "causal_mel", "widths": [16], "stem": 8, "mels": 12}
    teacher = narrow("feature_codec", features=mel, causal=False, ahead=0)
    student = narrow("feature_codec", seed=1, features=mel)
    clips, others = speech[16000][:7], speech[16000][7:]
    options = {"seconds": 0.25, "batch": 3, "weight": 0, "held_out": others}
    wave, figures = torch.stack(others), []
    for terms, trains in (
        ({"features": 1}, [r"encoder\.parts\.0"]),
        ({"restored": 1, "latents": 1}, [r"encoder\.parts\.1", r"decoder\.parts\.0"]),
    ):
        task = FeatureTask(
            student, clips, **options, weights={"quantizer": 0},
            supervision={"teacher": {"model": config_of(teacher), "terms": terms}},
        )  # fmt: skip
        term = task.supervision.teacher
        term.teacher.load_state_dict(teacher.state_dict())
        before = {key: value.clone() for key, value in student.state_dict().items()}
        for told in range(2):
            with torch.no_grad():
                latents = student.encode_latents(wave)
                apart = float(term(student, wave, latents, student.quantize(latents)))
                figures.append({"apart": apart, **task.evaluate(0)})
            if not told:
                learned(task, 14, [f"codec.{pattern}" for pattern in trains])
        changed = {".".join(key.split(".")[:3]) for key, value in student.state_dict().items()
                   if not torch.equal(value, before[key])}  # fmt: skip
        assert changed == {pattern.replace("\\", "") for pattern in trains}
    assert figures[1]["apart"] < 0.7 * figures[0]["apart"] and figures[3]["apart"] < 0.9 * figures[2]["apart"], figures
    assert figures[3]["agreement/0"] > figures[2]["agreement/0"], figures


@torch.no_grad()
def test_distances_are_what_they_are_said_to_be(pair, speech):
    """Against sums written out; frames of twice the rate are averaged in pairs, widths are mapped."""
    folder, teacher = pair
    student, wave = student_of(teacher), speech[8000][0][None, :, :1920]
    term = TeacherCodec(student, folder, {"latents": 1, "quantized": 2, "wave": 3}, "l1")
    latents = student.encode_latents(wave)
    quantized = student.eval().quantize(latents)
    sound = student.decode_latents(quantized.latents)[..., : wave.shape[-1]]
    found = term.distances(student, wave, latents, quantized, sound)
    theirs = teacher.encode_latents(wave)
    again = teacher.quantize(theirs).latents
    assert float(found["latents"]) == pytest.approx(float((latents - theirs).abs().mean()), rel=1e-5)
    assert float(found["quantized"]) == pytest.approx(float((quantized.latents - again).abs().mean()), rel=1e-5)
    assert float(found["wave"]) == pytest.approx(
        float(term.mel(sound, teacher.decode_latents(again)[..., : wave.shape[-1]])), rel=1e-5
    )
    total = term(student, wave, latents, quantized, sound)
    assert float(total) == pytest.approx(float(found["latents"] + 2 * found["quantized"] + 3 * found["wave"]))

    slow = narrow("apcodec", stride=16, dim=5)
    term = TeacherCodec(student, config_of(slow), {"latents": 1})
    assert (term.maps["latents"].in_features, term.maps["latents"].out_features) == (6, 5)
    target = term.teacher.encode_latents(wave)
    halved = term.maps["latents"](latents).unflatten(1, (target.shape[1], 2)).mean(2)
    found = term.distances(student, wave, latents, quantized, None)
    assert float(found["latents"]) == pytest.approx(float((halved - target).square().mean()), rel=1e-4)
    assert term.agreement(student, wave, quantized.codes) == {}  # other frames


def test_a_teacher_that_cannot_be_is_named(pair, tmp_path, speech):
    folder, teacher = pair
    student = student_of(teacher)
    for options, said in (
        ({"model": folder, "terms": {"phase": 1}}, "there are features, latents"),
        ({"model": folder, "terms": {}}, "terms none"),
        ({"model": folder, "terms": {"latents": 1}, "distance": "cosine"}, "l2, l1"),
        ({"model": folder, "terms": {"features": 1}}, "no features"),
        ({"model": str(tmp_path / "none"), "terms": {"latents": 1}}, "train the teacher first"),
        ({"model": {**config_of(teacher), "sample_rate": 16000}, "terms": {"latents": 1}}, "sample_rate 16000"),
    ):
        with pytest.raises(RecipeError, match=said):
            Supervision(student, {"teacher": options})
    heard = narrow("feature_codec")
    with pytest.raises(RecipeError, match="no sound is made"):
        FeatureTask(heard, speech[16000], supervision={"teacher": {"model": config_of(heard), "terms": {"wave": 1}}})
