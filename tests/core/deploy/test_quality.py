import json

import pytest

from gkd_core.deploy.quality import qualities
from gkd_core.errors import ConfigError


def test_as_many_other_rows_are_not_compared_either(invoke, finished, tmp_path):
    assert invoke("export", finished, "--to", "out").code == 0
    path = tmp_path / "out" / "lineage.json"
    known = json.loads(path.read_text())
    mine, its = qualities([str(finished / "student"), "out"]).values()
    assert mine.judged_by == its.judged_by
    known["verification"]["rows_digest"] = "of other rows"
    path.write_text(json.dumps(known))
    mine, its = qualities([str(finished / "student"), "out"]).values()
    assert mine.judged_by != its.judged_by


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_lineage_is_named(tmp_path, content):
    (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(ConfigError, match=r"lineage\.json is damaged"):
        qualities([str(tmp_path)])
