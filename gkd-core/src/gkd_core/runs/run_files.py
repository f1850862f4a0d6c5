"""The names of what a run leaves in its directory, beside what its stages leave in theirs."""

from __future__ import annotations

CONFIG = "config.toml"
"""The complete configuration, which reproduces the run."""

OUTLINE = "outline.txt"
"""What `gkd explain` says of the run."""

LOG = "log.txt"
"""What the run has said."""

METRICS = "metrics.jsonl"
"""The values of each step and evaluation."""

RESULTS = "results.json"
"""The comparison of the run's models."""

REPORT = "report.html"
"""The same as a page, with figures."""

DONE = "done.json"
"""The result of a stage, in its folder; it is there once the stage is finished."""
