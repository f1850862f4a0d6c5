"""What `check_method` finds that a run would only show in its numbers."""

import pytest

from gkd_core.api import Method, mse
from gkd_core.testing import check_method


class FromTheStart(Method):
    """Compares the first positions, which in a row padded on the left are no tokens."""

    name = "from-the-start"
    paper = "A test"
    place = 0

    def reads(self, models, step):
        return ["student.hidden[1]", "teacher.hidden[1]"]

    def loss(self, student, teacher, batch, step):
        here, there = student.hidden[1][:, self.place], teacher.hidden[1][:, self.place]
        return {self.name: mse(here, there, batch.samples)}


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_a_method_that_counts_positions_from_the_left_is_found(kind):
    with pytest.raises(AssertionError, match="padding on the left of a decoder's rows changes"):
        check_method(FromTheStart, kinds=[kind])
