"""`python -m metazoo` is the command `metazoo`."""

from metazoo.cli import main

main()
