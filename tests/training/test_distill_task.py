"""Distillation: the divergences, and a student that comes to say what its teacher says."""

import pytest
import torch
import torch.nn.functional as F

from vivavoce.errors import RecipeError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for
from vivavoce.training.distill_task import DistillTask
from vivavoce.training.objectives import divergence, scored


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_their_definitions(temperature):
    student, teacher = 3 * torch.randn(7, 11), 3 * torch.randn(7, 11)
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    forward = (p * (p / q).log()).sum(-1) * temperature**2
    reverse = (q * (q / p).log()).sum(-1) * temperature**2
    torch.testing.assert_close(divergence(student, teacher, "forward", temperature), forward, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(divergence(student, teacher, "reverse", temperature), reverse, atol=1e-5, rtol=1e-4)
    student.requires_grad_()
    teacher.requires_grad_()
    divergence(student, teacher, "forward").sum().backward()
    torch.testing.assert_close(student.grad, student.softmax(-1) - teacher.softmax(-1))
    assert teacher.grad is None, "the teacher does not learn"
    with pytest.raises(RequestError, match="'sideways' is none of forward, reverse"):
        divergence(student, teacher, "sideways")


def model(kind: str = "delay", seed: int = 0, **changes):
    return assemble(read_recipe(f"layout-{kind}", "smoke", changes), seed)


@pytest.mark.parametrize(("direction", "share"), [("forward", 1.0), ("reverse", 1.0), ("forward", 0.5)])
def test_a_student_comes_to_agree_with_its_teacher(direction, share):
    teacher, student = model(seed=1), model(seed=2, **{"stages.lm.backbone.width": 48})
    for parameter in teacher.system.parameters():
        parameter.data.mul_(1.5)  # a teacher with opinions
    source = task_for(student.recipe, student.recipe.training[0], student).source
    task = DistillTask("t", student.system, source, teacher.system, direction, share=share)
    batch = task.batch(0, 0, 1)

    def apart() -> float:
        with torch.no_grad():
            ours, theirs = (one.system(batch.cells, "continue")["voice"] for one in (student, teacher))
            parts = zip(scored(ours), scored(theirs), strict=True)
            return float(torch.cat([divergence(a.logits, b.logits) for a, b in parts]).mean())

    before = apart()
    with torch.no_grad():
        first = float(task.loss(batch, 0)["loss"])
    if share == 1.0 and direction == "forward":
        assert first == pytest.approx(before, rel=1e-4)
    kept = {name: tensor.clone() for name, tensor in teacher.system.state_dict().items()}
    optimizer = torch.optim.AdamW(student.system.stage.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        task.loss(task.batch(step, 0, 1), step)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        assert float(task.loss(batch, 0)["loss"]) < 0.9 * first
    assert share < 1.0 or apart() < 0.6 * before
    assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.system.state_dict().items())


def test_half_a_share_is_half_of_both_losses():
    teacher, student = model(seed=1), model(seed=2)
    plain = task_for(student.recipe, student.recipe.training[0], student)
    tasks = [DistillTask("t", student.system, plain.source, teacher.system, share=share) for share in (1.0, 0.25)]
    batch = plain.batch(0, 0, 1)
    with torch.no_grad():
        nats, told, both = (float(task.loss(batch, 0)["loss"]) for task in (plain, *tasks))
    assert both == pytest.approx(0.25 * told + 0.75 * nats, rel=1e-5)
    predictions = plain.predict(batch)
    (first, *_), flat = predictions["voice"], []
    for part in scored(first):
        flat.append(F.cross_entropy(part.logits, part.targets, reduction="sum"))
    assert nats == pytest.approx(float(torch.stack(flat).sum().detach()) / int(first.loss.sum()), rel=1e-5)


def test_a_recipe_names_its_teacher_and_another_one_is_refused(tmp_path):
    model(seed=1).save(tmp_path / "teacher")
    changes = {"training.patterns.objective": {"kind": "distill", "teacher": str(tmp_path / "teacher"), "share": 0.5}}
    student = model(seed=2, **changes)
    task = task_for(student.recipe, student.recipe.training[0], student)
    assert isinstance(task, DistillTask) and torch.isfinite(task.loss(task.batch(0, 0, 1), 0)["loss"])
    other = model("parallel")
    with pytest.raises(RecipeError, match="teacher: it has other streams, tasks or layouts"):
        DistillTask("t", other.system, task.source, tmp_path / "teacher")
    larger = model("delay", **{"tokenizers.codes.size": 14})
    with pytest.raises(RecipeError, match=r"teacher: 'voice' has \[12, 12, 12, 12\] ids there and \[14"):
        DistillTask("t", larger.system, task.source, tmp_path / "teacher")
    for wrong in ({"direction": "up"}, {"temperature": 0.0}, {"share": 2.0}):
        with pytest.raises(RecipeError, match="share"):
            DistillTask("t", student.system, task.source, None, **wrong)
