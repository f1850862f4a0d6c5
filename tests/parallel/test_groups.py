"""Who shares a copy of which model."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from gkd_core.distributed.layout import Layout
from gkd_core.errors import ConfigError


def ranks_of(group):
    return dist.get_process_group_ranks(group)


def members(tensor, teachers):
    from gkd_core.distributed.groups import setup, teardown

    groups = setup(Layout(dist.get_world_size(), tensor, teachers))
    found = ranks_of(groups.tensor), ranks_of(groups.data)
    held = {name: ranks_of(group) for name, group in groups.teachers.items()}
    same = {name: group is groups.tensor for name, group in groups.teachers.items()}
    teardown()
    return *found, held, same


def test_a_teacher_may_be_wider_than_the_student(on_ranks):
    outcomes = on_ranks(4, members, 1, {"big": 4, "middle": 2, "small": 1})
    for rank, (tensor, data, teachers, same) in enumerate(outcomes):
        assert tensor == [rank]
        assert data == [0, 1, 2, 3]
        assert teachers == {
            "big": [0, 1, 2, 3],
            "middle": [rank - rank % 2, rank - rank % 2 + 1],
            "small": [rank],
        }
        assert same == {"big": False, "middle": False, "small": True}


def test_data_groups_cross_tensor_groups(on_ranks):
    outcomes = on_ranks(4, members, 2, {"narrow": 1})
    assert [outcome[0] for outcome in outcomes] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [outcome[1] for outcome in outcomes] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [outcome[2]["narrow"] for outcome in outcomes] == [[0], [1], [2], [3]]


def wrong_number():
    from gkd_core.distributed.groups import setup

    with pytest.raises(ConfigError, match="the layout is for 4 processes, but 2 were started"):
        setup(Layout(4, 2))
    return True


def test_a_layout_for_another_number_of_processes_is_refused(on_ranks):
    assert on_ranks(2, wrong_number) == [True, True]


CLIP = 0.05
STEPS = 4


def rows(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(4, 99, (4, 12), generator=generator)


def build(path):
    return AutoModelForCausalLM.from_pretrained(path).train()


def loss_of(model, tokens):
    return model(input_ids=tokens).logits.float().log_softmax(-1)[..., 1].mean()


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5)


def train_alone(path):
    model = build(path)
    optimizer = adamw(model)
    losses, norms = [], []
    for step in range(STEPS):
        loss = loss_of(model, rows(step))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def train_together(path, tensor, zero):
    from gkd_core.distributed.groups import ModelParallelUnit, setup
    from gkd_core.distributed.layout import Layout
    from gkd_core.parallel.sharding import shard_model

    number = str(dist.get_rank())
    os.environ.update(DS_ACCELERATOR="cpu", RANK=number, LOCAL_RANK=number)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for minutes
    groups = setup(Layout(dist.get_world_size(), tensor))
    model = shard_model(build(path), groups.tensor)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": zero},
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=adamw(model), config=settings, mpu=ModelParallelUnit(groups)
    )
    losses, norms = [], []
    for step in range(STEPS):
        loss = loss_of(engine, rows(step)[groups.data.rank() :: groups.data.size()])
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        dist.all_reduce(total, group=groups.data)
        losses.append(total.item() / groups.data.size())
        norms.append(float(engine.get_global_grad_norm()))
    return losses, norms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensor", "zero"),
    [(2, 3), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((2, 1), (4, 1)))],
)
def test_deepspeed_over_these_groups_trains_as_one_process_does(on_ranks, checkpoint, tensor, zero):
    path = checkpoint("qwen3", "causal-lm")
    losses, norms = train_alone(path)
    assert norms[0] > CLIP
    for their_losses, their_norms in on_ranks(4, train_together, path, tensor, zero):
        assert their_losses == pytest.approx(losses, abs=1e-5)
        assert their_norms == pytest.approx(norms, rel=1e-5)
