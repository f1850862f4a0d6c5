"""The tasks of GLUE (Wang et al. 2019)."""

from gkd_core.benchmarks.glue.cola import CoLA
from gkd_core.benchmarks.glue.entailment import MNLI, QNLI, WNLI, GlueRTE
from gkd_core.benchmarks.glue.paraphrases import MRPC, QQP
from gkd_core.benchmarks.glue.sst2 import SST2
from gkd_core.benchmarks.glue.stsb import STSB

TASKS = (CoLA, SST2, MRPC, STSB, QQP, MNLI, QNLI, GlueRTE, WNLI)
