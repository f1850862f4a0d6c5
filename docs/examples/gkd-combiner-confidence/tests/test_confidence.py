from gkd_combiner_confidence import Confidence

from gkd_core.testing import check_combiner


def test_it_keeps_the_contract_on_two_ranks() -> None:
    check_combiner(Confidence, ranks=2)
