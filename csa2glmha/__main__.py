"""`python -m csa2glmha`."""

from csa2glmha.cli import main

main()
