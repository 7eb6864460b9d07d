"""The `audiovq` command."""

from audiovq.cli.app import app, main

__all__ = ["app", "main"]
