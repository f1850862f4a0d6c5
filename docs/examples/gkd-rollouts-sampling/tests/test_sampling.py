import pytest
from gkd_rollouts_sampling import Sampling
from pydantic import ValidationError

from gkd_core.testing import check_rollouts


def test_it_keeps_the_contract() -> None:
    check_rollouts(Sampling, {"cooling": 0.5})


def test_the_temperature_survives_a_checkpoint() -> None:
    cooled, resumed = Sampling(Sampling.Config(temperature=0.5)), Sampling(Sampling.Config())
    resumed.load_state_dict(cooled.state_dict())
    assert resumed.temperature == 0.5


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Sampling.Config(temperature=0)
