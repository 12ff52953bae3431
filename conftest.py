"""Registers the harness: options, rules, records. See specs/harness/plugin.py."""

pytest_plugins = ["specs.harness.plugin", "pytester"]
