"""How tensors are divided: worked out by hand, and undone."""

from __future__ import annotations

import pytest
import torch

from gkd_core.distributed.shards import ShardSpec


def test_rows_are_divided_in_order():
    whole = torch.arange(12.0).view(6, 2)
    split = ShardSpec((6, 2), 0, ranks=3)
    assert split.shard(whole, 1).tolist() == [[4, 5], [6, 7]]


def test_columns_are_divided_in_order():
    whole = torch.arange(8.0).view(2, 4)
    assert ShardSpec((2, 4), 1, ranks=2).shard(whole, 1).tolist() == [[2, 3], [6, 7]]


def test_fused_maps_are_divided_one_by_one():
    whole = torch.tensor([10.0, 11, 20, 21, 30, 31])
    assert ShardSpec((6,), 0, ranks=2, parts=3).shard(whole, 1).tolist() == [11, 21, 31]


def test_a_shard_of_a_conv1d_is_a_linear_layers():
    whole = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])  # 2 inputs, 4 outputs
    split = ShardSpec((2, 4), 1, ranks=2, transposed=True)
    assert split.shard(whole, 0).tolist() == [[1, 5], [2, 6]]
    assert split.shard_shape == (2, 2)


def test_what_does_not_divide_is_filled_up_with_zeros():
    split = ShardSpec((5,), 0, ranks=4)
    whole = torch.tensor([1.0, 2, 3, 4, 5])
    assert [split.shard(whole, rank).tolist() for rank in range(4)] == [
        [1, 2],
        [3, 4],
        [5, 0],
        [0, 0],
    ]


@pytest.mark.parametrize(
    "split",
    [
        ShardSpec((6, 4), 0, ranks=2),
        ShardSpec((6, 4), 1, ranks=4),
        ShardSpec((12, 4), 0, ranks=2, parts=3),
        ShardSpec((4, 12), 1, ranks=2, parts=3, transposed=True),
        ShardSpec((7, 3), 0, ranks=4),
        ShardSpec((12,), 0, ranks=2, parts=2),
    ],
)
def test_writing_all_shards_gives_the_whole_back(split):
    whole = torch.randn(split.shape)
    joined = torch.full(split.shape, float("nan"))
    for rank in range(split.ranks):
        shard = split.shard(whole, rank)
        assert tuple(shard.shape) == split.shard_shape
        split.write(shard, rank, joined)
    assert (joined == whole).all()


def test_only_the_shape_of_a_meta_tensor_is_divided():
    shard = ShardSpec((8, 4), 0, ranks=4).shard(torch.empty(8, 4, device="meta"), 2)
    assert shard.is_meta
    assert shard.shape == (2, 4)
