"""The tasks of SuperGLUE (Wang et al. 2019), one file each."""

from gkd_core.benchmarks.superglue.boolq import BoolQ
from gkd_core.benchmarks.superglue.cb import CB
from gkd_core.benchmarks.superglue.copa import COPA
from gkd_core.benchmarks.superglue.multirc import MultiRC
from gkd_core.benchmarks.superglue.record import ReCoRD
from gkd_core.benchmarks.superglue.rte import RTE
from gkd_core.benchmarks.superglue.wic import WiC
from gkd_core.benchmarks.superglue.wsc import WSC

TASKS = (BoolQ, CB, COPA, MultiRC, ReCoRD, RTE, WiC, WSC)
