"""What makes rules run: declaring them, judging subjects and violations, keeping the record.

Specs import from here the four words that declare a rule. Nothing in this package imports torch
before a spec does, so that collecting a chapter costs only what the chapter itself needs.
"""

from specs.harness.rules import known_bug, raising, rule, spec

__all__ = ["known_bug", "raising", "rule", "spec"]
