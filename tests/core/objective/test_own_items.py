"""Means over the items that a method declares."""

from __future__ import annotations

import pytest
import torch

from gkd_core.api import Batch, Items, Method, MethodError, Term
from gkd_core.testing import check_method, tiny_batch


class Even(Method):
    """The mean square of the student's states at even positions."""

    name = "even"
    paper = "A test"
    teachers = "none"

    def items(self, batch):
        return {"even": batch.mask & (batch.mask.cumsum(1) % 2 == 1)}

    def reads(self, models, step):
        return ["student.hidden[last]"]

    def loss(self, student, teacher, batch, step):
        over = batch.items("even")
        values = student.hidden[-1].square().mean(-1)
        return {"even": Term(torch.where(over.mask, values, 0.0), over)}


class Undeclared(Even):
    """The same over items that nobody has counted."""

    name = "undeclared"

    def items(self, batch):
        return {}

    def loss(self, student, teacher, batch, step):
        over = Items.where("token", batch.mask & (batch.rows == 0).unsqueeze(1))
        return {"undeclared": Term(over.mask.double() + 0 * student.hidden[-1].sum(), over)}


class Unknown(Even):
    """Asks for items under a name that it does not declare."""

    name = "unknown"

    def items(self, batch):
        return {}


def test_a_method_with_items_of_its_own_has_the_properties_of_every_method():
    check_method(Even)


def test_items_that_were_not_counted_are_refused_with_a_way_out():
    with pytest.raises(
        MethodError, match=r"undeclared averages .*`batch\.items\(NAME\)`"
    ) as refused:
        check_method(Undeclared)
    assert "average over `batch.tokens`" in str(refused.value)


def test_items_under_an_unknown_name_are_refused():
    with pytest.raises(MethodError, match="unknown does not declare the items 'even'"):
        check_method(Unknown)


def test_items_are_counted_and_moved_with_the_batch():
    batch = tiny_batch("classification")
    first = batch.mask & (torch.arange(10) < 1)
    batch.declare("mine", {"first": first})
    assert batch.counts()["mine.first"] == 4
    moved = batch.to(torch.device("cpu")).seen_by("mine")
    assert torch.equal(moved.items("first").mask, first)
    assert moved.has_counted(moved.items("first"))
    assert moved.has_counted(moved.tokens)
    assert not moved.has_counted(Items.where("token", moved.tokens.mask.clone()))
    idle = Batch(batch.inputs, batch.labels, batch.rows, counted=False)
    idle.declare("mine", {"first": first})
    assert idle.counts()["mine.first"] == 0


@pytest.mark.parametrize("mask", [torch.ones(4), torch.ones(3, 2, dtype=torch.bool)])
def test_masks_of_another_type_or_shape_are_refused(mask):
    with pytest.raises(MethodError, match="mine declares the items 'first' by a"):
        tiny_batch("classification").declare("mine", {"first": mask})
