"""`python -m gkd_core.cli` is `gkd`."""

from gkd_core.cli import main

main()
