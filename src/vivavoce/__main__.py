"""`python -m vivavoce` is the `vivavoce` command."""

from vivavoce.cli import main

main()
