"""`python -m gr2.cli`: the same as `gr2`."""

from gr2.cli import main

main()
