"""The suite's own version: written into every ledger, and read by pyproject.toml."""

VERSION = "0.1.0"
