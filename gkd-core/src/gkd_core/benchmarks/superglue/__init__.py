"""The tasks of SuperGLUE (Wang et al. 2019), one file each."""

from gkd_core.benchmarks.superglue.boolq import BoolQ
from gkd_core.benchmarks.superglue.cb import CB
from gkd_core.benchmarks.superglue.rte import RTE

TASKS = (BoolQ, CB, RTE)
