"""`python -m pyroflows`."""

from pyroflows.cli import main

main()
