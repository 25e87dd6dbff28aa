"""Two processes with half the batch each keep the codebooks of one process with all of it."""

import torch
import torch.distributed as dist

from vivavoce.quantizers import build_quantizer
from vivavoce.quantizers.collective import gathered
from warm_process import finish, start

STEPS = 11
KINDS = {
    "rvq": {"kind": "rvq", "codebooks": 2, "codebook_size": 16, "replace_every": 2},
    "ordered_pq": {"kind": "ordered_pq", "codebooks": 2, "heads": [8, 4], "head_width": 3, "replace_every": 2},
    "variational_rvq": {"kind": "variational_rvq", "codebooks": 2, "codebook_size": 16},
}


def batches():
    generator = torch.Generator().manual_seed(8)
    scales = torch.tensor([1.0, 30.0])  # the second half of the run leaves the first entries dead
    for step in range(STEPS):
        yield torch.randn(4, 40, 4, generator=generator) * scales[step // 6], torch.tensor([40, 11, 25, 3])


def train(rows: slice) -> dict[str, torch.Tensor]:
    found = {}
    for name, options in KINDS.items():
        torch.manual_seed(0)
        quantizer = build_quantizer({**options, "width": 4})
        for x, lengths in batches():
            quantizer(x[rows], lengths[rows])
        found |= {f"{name}.{key}": value for key, value in quantizer.state_dict().items()}
    return found


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    uneven = gathered(torch.full((rank * 3, 2), float(rank)))
    assert uneven.shape == (3, 2) and (uneven == 1).all()
    torch.save(train(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_on_the_joint_batch(tmp_path):
    processes = [start(__file__, "worker", rank, str(tmp_path)) for rank in range(2)]
    assert [finish(process) for process in processes] == [0, 0]
    alone = train(slice(None))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key].double(), value.double(), rtol=1e-4, atol=1e-4), key
    halves = train(slice(0, 2))
    assert not torch.allclose(halves["rvq.levels.0.embedding_sum"], alone["rvq.levels.0.embedding_sum"], atol=1e-2)
