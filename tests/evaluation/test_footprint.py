"""The footprint of a model: measured in processes of its own, judged against its targets."""

import pytest

import vivavoce
from vivavoce.errors import RequestError, VivavoceError
from vivavoce.evaluation import evaluate, task
from vivavoce.evaluation.footprint import MEASURES, directory_size


class Live:
    verbs = ("duplex",)


def test_a_smoke_model_is_measured(tmp_path):
    vivavoce.build("mini", size="smoke").save(tmp_path / "model")
    results = evaluate(Live(), task("footprint", model_name=str(tmp_path / "model"), steps=3))
    found = {r.metric: r for r in results}
    assert set(found) == set(MEASURES) and all(r.value > 0 and r.target for r in results)
    assert 50 < found["peak memory"].value < 2000
    assert found["files in the package"].value == pytest.approx(directory_size(str(tmp_path / "model")) / 1e6)
    assert found["real-time factor"].reached is (found["real-time factor"].value <= 0.2)
    assert found["lockstep step, p99"].group == "16 row(s), 2 thread(s)"


def test_a_process_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("vivavoce.evaluation.footprint._PROGRAM", "import sys; sys.exit(f'no model {sys.argv[1]}')")
    with pytest.raises(VivavoceError, match=r"1 row.* failed: no model nothing"):
        evaluate(Live(), task("footprint", model_name="nothing", steps=1))
    with pytest.raises(RequestError, match="model_name"):
        task("footprint")


def test_only_what_is_shipped_counts(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "recipe.yaml").write_text("x" * 10)
    (tmp_path / "metrics.jsonl").write_text("x" * 500)
    (tmp_path / "checkpoints").mkdir()
    assert directory_size(str(tmp_path)) == 1010
    assert directory_size("someone/some-hub-id") is None
