"""Reading a ledger: whatever is wrong with the file is said in one line."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from specs.harness.ledger import SCHEMA, SCHEMA_VERSION
from specs.harness.version import VERSION

SCHEMA_FILE = Path(__file__).with_name("ledger.schema.json")


def read(given: str, start: Path, option: str) -> dict[str, Any]:
    """The ledger in a file, which may be compressed (NAME.json.gz).

    Raises pytest.UsageError that names the option, the file, the key and what was expected.
    """
    complaint = f"{option} {given}: "
    path = start / given
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        ledger = json.loads(text)
    except FileNotFoundError:
        raise pytest.UsageError(f"{complaint}no such file") from None
    except IsADirectoryError:
        raise pytest.UsageError(f"{complaint}is a directory, expected a ledger") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}"
        raise pytest.UsageError(f"{complaint}not JSON, or cut off ({where}: {error.msg})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError):
        raise pytest.UsageError(f"{complaint}damaged, expected a ledger") from None
    except OSError as error:
        raise pytest.UsageError(f"{complaint}{error.strerror or error}") from None
    if not isinstance(ledger, dict) or ledger.get("schema") != SCHEMA:
        raise pytest.UsageError(f"{complaint}not a ledger: expected the key schema to be {SCHEMA}")
    if ledger.get("schema_version") != SCHEMA_VERSION:
        raise pytest.UsageError(
            f"{complaint}schema_version is {ledger.get('schema_version')!r},"
            f" expected {SCHEMA_VERSION}"
        )
    if ledger.get("suite") != VERSION:
        raise pytest.UsageError(
            f"{complaint}written by suite {ledger.get('suite')}, this is {VERSION}:"
            " write it again with this one"
        )
    _validate(ledger, complaint)
    return ledger


def _validate(ledger: dict[str, Any], complaint: str) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(ledger))
    if error is not None:
        key = "/".join(map(str, error.absolute_path)) or "the whole"
        reason = error.message if len(error.message) < 200 else f"not as {error.validator} wants it"
        raise pytest.UsageError(f"{complaint}{key}: {reason}")


@lru_cache(maxsize=1)
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
