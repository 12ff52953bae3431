"""What changed between two ledgers: verdicts, behaviour, warnings, signatures, texts, rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from specs.harness.numbers import moved, number

#: The classes of changes, the gravest first.
VERDICT, BEHAVIOUR, WARNING, SIGNATURE, TEXT, ROUNDING = CLASSES = (
    "verdict",
    "behaviour",
    "warning",
    "signature",
    "text",
    "rounding",
)

#: The rule whose observations are the random streams themselves.
STREAMS = "SEED-02"

#: Values are shown up to this length.
SHOWN = 100

Ledger = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One thing that differs between two runs."""

    kind: str
    #: Ids of the rules that show it: several only where they judge the same function.
    rules: tuple[str, ...]
    #: What the rule says, or what the rules have in common.
    statement: str
    #: The test and the observation, or the function whose signature changed; "" for a rule.
    where: str
    old: str
    new: str
    #: How far a number moved, in units of its last place.
    ulps: float | None = None
    #: Whether it is a number of a rule that draws, while a random stream moved.
    follows: bool = False


@dataclass
class Comparison:
    """All changes between two runs, in the order of their classes."""

    old: Ledger
    new: Ledger
    changes: list[Change] = field(default_factory=list)
    #: What could not be compared, and why; a line each.
    not_compared: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Change]:
        """The changes of one class that stand for themselves."""
        return [change for change in self.changes if change.kind == kind and not change.follows]

    @property
    def following(self) -> list[Change]:
        """Numbers that moved while a random stream moved, too."""
        return [change for change in self.changes if change.follows]


def compare(old: Ledger, new: Ledger) -> Comparison:
    """Everything that differs between two ledgers of the same suite.

    Only rules and tests that ran in both are compared; the others are counted in `not_compared`.
    """
    found = Comparison(old, new)
    common = [id for id in new["rules"] if id in old["rules"]]
    for name, these, others in (("old", old, new), ("new", new, old)):
        lonely = [id for id in these["rules"] if id not in others["rules"]]
        if these["not_run"]:
            count = len(these["not_run"])
            found.not_compared.append(f"the {name} run is not complete: {count} tests did not run")
        if lonely:
            found.not_compared.append(f"only in the {name} ledger: {', '.join(lonely)}")
    changes: list[Change] = []
    gained: list[tuple[str, str]] = []
    for id in common:
        changes += _rule_changes(id, old, new, found.not_compared, gained)
    for reason in dict.fromkeys(reason for reason, _ in gained):
        rules = list(dict.fromkeys(id for why, id in gained if why == reason))
        found.not_compared.append(f"skipped before: {reason} ({', '.join(rules)})")
    changes = _merged_signatures(changes)
    if not any(STREAMS in one.rules and one.kind == BEHAVIOUR for one in changes):
        changes = [replace(one, follows=False) for one in changes]
    found.changes = sorted(changes, key=lambda one: CLASSES.index(one.kind))
    return found


def _rule_changes(
    id: str, old: Ledger, new: Ledger, skipped: list[str], gained: list[tuple[str, str]]
) -> Iterator[Change]:
    """What differs in one rule; what cannot be compared goes to `skipped`, and into `gained` the
    reason why a test was skipped that is not skipped now, with the rule."""
    before, after = old["rules"][id], new["rules"][id]
    about = ((id,), after["statement"])
    if before["verdict"] != after["verdict"] and not _newly_judged(before, after, "verdict"):
        yield Change(VERDICT, *about, "", _verdict(before), _verdict(after))
    # A spec may keep what it trained for the next one, so one that draws stands for its rule.
    draws = not set(new["drew"]).isdisjoint(after["tests"])
    for nodeid, test in after["tests"].items():
        earlier = same_test(nodeid, before["tests"], after["tests"])
        if earlier is None:
            skipped.append(f"{id}: {nodeid.partition('::')[2]} ran only in the new ledger")
            continue
        name = nodeid.partition("::")[2]
        if _newly_judged(earlier, test, "outcome"):
            gained.append((earlier["reason"], id))
            continue
        if earlier["outcome"] != test["outcome"]:
            if before["verdict"] == after["verdict"]:
                yield Change(VERDICT, *about, name, _outcome(earlier), _outcome(test))
            if "skipped" in (earlier["outcome"], test["outcome"]):
                continue
        ended = "passed" == earlier["outcome"] == test["outcome"]
        walk = _Walk(old, new, ended, skipped)
        for one in walk.mapping(earlier["observations"], test["observations"], name):
            follows = draws and one.ulps is not None and id != STREAMS
            yield Change(one.kind, *about, one.where, one.old, one.new, one.ulps, follows)
    for nodeid in before["tests"]:
        if same_test(nodeid, after["tests"], before["tests"]) is None:
            skipped.append(f"{id}: {nodeid.partition('::')[2]} ran only in the old ledger")
    yield from _signature_changes(about, before, after)


def _newly_judged(before: Ledger, after: Ledger, key: str) -> bool:
    """Whether something was skipped and did not fail now: more is judged, and nothing is lost."""
    return before[key] == "skipped" and after[key] not in ("skipped", "failed", "error")


def same_test(nodeid: str, old: Ledger, new: Ledger) -> Ledger | None:
    """The record in `old` of a test of `new`, also where only the label of its subject changed.

    A function that moved to another module has another label. Tests that stand in one ledger only
    are matched in their order if the function has as many of them in both.
    """
    if nodeid in old:
        return dict(old[nodeid])
    function, role = nodeid.partition("[")[0], new[nodeid]["role"]
    lonely = [
        [
            name
            for name, test in these.items()
            if name.partition("[")[0] == function and test["role"] == role and name not in others
        ]
        for these, others in ((old, new), (new, old))
    ]
    if len(lonely[0]) != len(lonely[1]):
        return None
    return dict(old[lonely[0][lonely[1].index(nodeid)]])


def _signature_changes(
    about: tuple[tuple[str], str], before: Ledger, after: Ledger
) -> Iterator[Change]:
    for name in sorted(before["signatures"].keys() & after["signatures"].keys()):
        was, now = before["signatures"][name], after["signatures"][name]
        if was != now:
            yield Change(SIGNATURE, *about, name, *parameters_that_differ(was, now))


def _merged_signatures(changes: list[Change]) -> list[Change]:
    """One change for a function that several rules judge."""
    rules: dict[tuple[str, str, str], list[str]] = {}
    for one in changes:
        if one.kind == SIGNATURE:
            rules.setdefault((one.where, one.old, one.new), []).extend(one.rules)
    merged = []
    for one in changes:
        if one.kind == SIGNATURE:
            judging = rules.pop((one.where, one.old, one.new), None)
            if judging is None:
                continue
            says = one.statement if len(judging) == 1 else f"these rules judge {one.where}"
            merged.append(replace(one, rules=tuple(judging), statement=says))
        else:
            merged.append(one)
    return merged


def parameters_that_differ(old: str, new: str) -> tuple[str, str]:
    """Of two signatures, the parameters that only one of them has, default included."""
    before, after = _parameters(old), _parameters(new)
    gone = [one for one in before if one not in after]
    come = [one for one in after if one not in before]
    if not gone and not come:
        return old, new  # the order alone changed
    return ", ".join(gone) or "(nothing)", ", ".join(come) or "(nothing)"


def _parameters(signature: str) -> list[str]:
    """The parameters of a signature: cut at commas that lie in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in signature.partition("(")[2].rpartition(")")[0]:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _verdict(rule: Ledger) -> str:
    """A rule's verdict, with the reason if it is not that it holds."""
    if rule["verdict"] not in ("failed", "skipped", "known bug"):
        return str(rule["verdict"])
    bad = {"failed": ("failed", "error"), "skipped": ("skipped",), "known bug": ("xfailed",)}
    for nodeid, test in rule["tests"].items():
        if test["outcome"] in bad[rule["verdict"]]:
            return f"{rule['verdict']} ({nodeid.partition('::')[2]}: {test['reason']})"
    return str(rule["verdict"])


def _outcome(test: Ledger) -> str:
    reason = f" ({test['reason']})" if test["reason"] else ""
    return f"{test['outcome']}{reason}"


class Found(NamedTuple):
    """What a walk finds: class, place, old, new, and for a number how far it moved."""

    kind: str
    where: str
    old: str
    new: str
    ulps: float | None = None


class _Walk:
    """Compares two observations of one name, as deep as they go."""

    def __init__(self, old: Ledger, new: Ledger, both_ended: bool, skipped: list[str]) -> None:
        self._machines = old["machine"], new["machine"]
        #: A test that failed may have ended before it observed everything.
        self._both_ended = both_ended
        self._skipped = skipped

    def mapping(self, old: Ledger, new: Ledger, place: str) -> Iterator[Found]:
        for name in [*old, *(name for name in new if name not in old)]:
            here = f"{place}: {name}"
            if name in old and name in new:
                yield from self.value(old[name], new[name], here)
            elif self._both_ended:
                yield _seen(BEHAVIOUR, here, old.get(name, "(absent)"), new.get(name, "(absent)"))

    def value(self, old: Any, new: Any, place: str) -> Iterator[Found]:
        if old == new:
            return
        kinds = _type(old), _type(new)
        if "depending" in kinds:
            fact = (old if kinds[0] == "depending" else new)["depends_on"]
            if kinds[0] == kinds[1] and _same_kind(*(one.get(fact) for one in self._machines)):
                yield from self.value(old["value"], new["value"], place)
            else:
                self._skipped.append(f"{place}: depends on {fact}, and the ledgers differ in that")
        elif kinds[0] != kinds[1]:
            yield _seen(WARNING if "warning" in kinds else BEHAVIOUR, place, old, new)
        elif kinds[0] == "float":
            yield from _numbers([old], [new], place)
        elif kinds[0] == "tensor":
            yield from _tensors(old, new, place)
        elif kinds[0] == "mapping":
            yield from self.mapping(old["items"], new["items"], place)
        elif kinds[0] == "list":
            yield from self._lists(old, new, place)
        elif kinds[0] == "warning":
            for key in ("category", "file"):
                if old[key] != new[key]:
                    yield _seen(WARNING, f"{place} ({key})", old[key], new[key])
            if old["message"] != new["message"]:
                yield _seen(TEXT, place, old["message"], new["message"])
        elif kinds[0] == "exception":
            if old["class"] != new["class"]:
                yield _seen(BEHAVIOUR, place, old["class"], new["class"])
            elif old["message"] != new["message"]:
                yield _seen(TEXT, place, old["message"], new["message"])
        elif kinds[0] == "signature":
            yield Found(SIGNATURE, place, *parameters_that_differ(old["text"], new["text"]))
        else:
            yield _seen(BEHAVIOUR, place, old, new)

    def _lists(self, old: list[Any], new: list[Any], place: str) -> Iterator[Found]:
        if len(old) != len(new):
            several = {_type(one) for one in (*old, *new)}
            yield _seen(WARNING if several == {"warning"} else BEHAVIOUR, place, old, new)
        elif all(_type(one) == "float" for one in (*old, *new)):
            yield from _numbers(old, new, place)
        else:
            for index, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from self.value(before, after, f"{place}[{index}]")


def _numbers(old: Any, new: Any, place: str, dtype: str | None = None) -> Iterator[Found]:
    """The worst of several floats that belong together."""
    before = [number(one) for one in old]
    after = [number(one) for one in new]
    worst = moved([x for x in before if x is not None], [x for x in after if x is not None], dtype)
    if worst is not None:
        kind = BEHAVIOUR if worst.beyond_rounding else ROUNDING
        here = f"{place}[{worst.place}]" if len(before) > 1 else place
        yield Found(kind, here, repr(worst.old), repr(worst.new), worst.ulps)


def _tensors(old: Ledger, new: Ledger, place: str) -> Iterator[Found]:
    for key in ("dtype", "shape"):
        if old[key] != new[key]:
            yield _seen(BEHAVIOUR, f"{place} ({key})", old[key], new[key])
            return
    if "values" in old:
        before, after = old["values"], new["values"]
        if all(_type(one) == "float" for one in (*before, *after)):
            yield from _numbers(before, after, place, old["dtype"])
        else:
            yield _seen(BEHAVIOUR, place, before, after)
        return
    if "int" in old["dtype"] or "bool" in old["dtype"]:
        yield _seen(BEHAVIOUR, place, old, new)
        return
    for name in old["summary"]:
        before, after = old["summary"][name], new["summary"][name]
        yield from _numbers([before], [after], f"{place} ({name})", old["dtype"])


def _type(record: Any) -> str:
    if isinstance(record, dict):
        return str(record["type"])
    return "list" if isinstance(record, list) else type(record).__name__


def _same_kind(old: Any, new: Any) -> bool:
    """Whether two facts about machines agree in their first word: cuda 12.6 and cuda 13.2 do."""
    return str(old).partition(" ")[0] == str(new).partition(" ")[0]


def _seen(kind: str, place: str, old: Any, new: Any) -> Found:
    return Found(kind, place, shown(old), shown(new))


def shown(record: Any) -> str:
    """A record as a person would write it, in one line."""
    text = _written(record)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _written(record: Any) -> str:
    kind = _type(record)
    if kind == "list":
        return f"[{', '.join(map(_written, record))}]"
    if kind == "mapping":
        return json.dumps({key: _written(one) for key, one in record["items"].items()})
    if kind == "tensor":
        values = record.get("values", record.get("sha256", "")[:12])
        return f"{record['dtype']} {record['shape']} {_written(values)}"
    if kind == "warning":
        return f"{record['category']}: {record['message']}"
    if kind == "exception":
        return f"{record['class']}: {record['message']}"
    if isinstance(record, dict):
        return _written(record["text"] if kind == "signature" else record["value"])
    return str(record)
