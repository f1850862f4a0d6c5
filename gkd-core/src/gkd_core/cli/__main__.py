"""`python -m gkd_core.cli` runs `gkd`."""

from gkd_core.cli import main

main()
