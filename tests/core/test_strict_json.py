from __future__ import annotations

import json
import math

from gkd_core.strict_json import json_text


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def parse(text):
    return json.loads(text, parse_constant=_refuse)


def test_numbers_that_are_not_finite_become_null_at_every_depth():
    value = {"a": math.nan, "b": [1.5, (math.inf, {"c": -math.inf})], "d": "NaN"}
    assert parse(json_text(value)) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "NaN"}


def test_finite_values_are_written_as_json_writes_them():
    value = {"a": [1, 0.1, None, True], "b": "ü"}
    assert json_text(value, indent=1) == json.dumps(value, indent=1)
