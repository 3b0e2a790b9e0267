"""``python -m gs_core`` is the command ``gsq``."""

from gs_core.cli import main

main()
