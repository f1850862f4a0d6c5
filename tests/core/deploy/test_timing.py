from types import SimpleNamespace

from gkd_core.deploy.timing import default_lengths


def test_a_model_that_reads_less_is_measured_at_what_it_SimpleNamespace():
    said = []
    found = default_lengths(
        [SimpleNamespace(name="a", longest=512), SimpleNamespace(name="b", longest=16)], said.append
    )
    assert found == [16]
    assert said == [
        f"rows of {length} tokens are left out: b reads at most 16" for length in (32, 128)
    ]
