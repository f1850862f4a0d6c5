import pytest
from pydantic import ValidationError

from gkd_core.plugins import registry


@pytest.mark.parametrize("name", ["distilbert", "glmd", "kd", "soft"])
@pytest.mark.parametrize("value", [0, -1, "linear(4 -> 0)"])
def test_a_temperature_that_reaches_zero_is_refused(name, value):
    config = registry().method(name).Config
    assert config(temperature="linear(4 -> 0.5)").temperature.at(10, 10) == 0.5
    with pytest.raises(ValidationError, match="must stay above 0"):
        config(temperature=value)
