"""Properties that all methods of the package share."""

import pytest

from gkd_core.plugins import registry
from gkd_core.testing import check_method

METHODS = [name for name in registry().methods if registry().provider(name).name == "classic"]


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_properties_every_method_must_have(name):
    check_method(registry().method(name))


@pytest.mark.parametrize(
    "options", [{"layers": "last"}, {"layers": [[1, 4]]}, {"reduction": "sum"}]
)
def test_pkd_has_them_with_other_options(options):
    check_method(registry().method("pkd"), options)
