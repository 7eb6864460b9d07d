"""`python -m audiovq` is the `audiovq` command."""

from audiovq.cli import main

main()
