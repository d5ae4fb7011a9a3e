"""``python -m mri_edge``: the command line."""

from .cli import main

main()
