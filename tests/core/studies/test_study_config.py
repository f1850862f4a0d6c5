import math

import pytest

from gkd_core.errors import ConfigError
from gkd_core.studies.study_config import parse_study, read_study


def test_axes_may_be_written_as_tables():
    config = parse_study({"axes": {"training": {"lr": [1e-4, 1e-3]}, "seed": [1, 2]}}, "test")
    assert config.axes == {"training.lr": [1e-4, 1e-3], "seed": [1, 2]}
    assert (config.seeds, config.center) == ([1, 2], {"training.lr": 1e-4})


def test_values_stand_for_settings():
    values = {"knowledge": {"attention": {"method": "tinybert", "tinybert": {"x": 1}}}}
    axes = {"knowledge": ["attention"], "task": ["glue/rte"], "seed": [3]}
    config = parse_study({"axes": axes, "values": values}, "test")
    found = config.settings_of("knowledge", "attention")
    assert found == {"method": "tinybert", "tinybert.x": 1}
    assert config.settings_of("task", "glue/rte") == {"task.name": "glue/rte"}
    assert config.settings_of("seed", 3) == {"seed": 3}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"axis": {}}, "axis"),
        ({"axes": {"method": ["kd", "kd"]}}, "axes.method needs values that all differ"),
        ({"axes": {"seed": ["one"]}}, "axes.seed needs whole numbers"),
        ({"axes": {"method": ["kd"]}, "equal_size": "method"}, "is no axis of depths"),
        ({"tune": {"lr_factors": [1, 1]}}, "lr_factors needs values that all differ"),
        ({"tune": {"lr_factors": [1, math.inf]}}, "lr_factors.1: Input should be a finite"),
        (
            {"design": "list", "cells": [{"method": "kd"}], "axes": {"method": ["kd"]}},
            "axes.method has no effect on a list",
        ),
        ({"design": "list"}, "`cells` and design = 'list' belong together"),
        ({"baseline": {"method": "kd"}}, "baseline names the axis 'method'"),
        ({"values": {"size": {"small": {}}}}, "values names the axis 'size'"),
        ({"constraints": [{"when": {"x": 1}, "reason": "y"}]}, "constraints.0.when names the axis"),
    ],
)
def test_wrong_study_is_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        parse_study(tree, "study.toml")


def test_constraint_needs_all_its_values():
    when = {"knowledge": ["attention", "relation"], "heads": 8}
    axes = {"knowledge": ["attention", "logits"], "heads": [8, 12]}
    tree = {"axes": axes, "constraints": [{"when": when, "reason": "too many heads"}]}
    constraint = parse_study(tree, "test").constraints[0]
    assert constraint.holds({"knowledge": "attention", "heads": 8})
    assert not constraint.holds({"knowledge": "logits", "heads": 8})
    assert not constraint.holds({"knowledge": "attention", "heads": 12})
    assert not constraint.holds({"heads": 8})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the study file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes('title = "Größe"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        read_study(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="the name of a study file ends in"):
        read_study(tmp_path / "none.txt")
