"""Changes of behaviour between releases that the project knows: since when, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from specs.harness.comparison import (
    BEHAVIOUR,
    SIGNATURE,
    TEXT,
    VERDICT,
    WARNING,
    Change,
    Ledger,
)
from specs.harness.versions import as_release


class Known(NamedTuple):
    """One change of one package, seen by these rules in these classes."""

    package: str
    since: str
    rules: tuple[str, ...]
    kinds: tuple[str, ...]
    #: Text that the place of the change contains; "" for any place.
    where: str
    #: What it means for training code, and what to do.
    advice: str


KNOWN = (
    Known(
        "torch",
        "2.14",
        ("AG-11",),
        (BEHAVIOUR, VERDICT),
        "",
        "clamp passes no gradient at its bound any more (half of it at a tensor): a parameter that"
        " starts at the bound stays there; start inside, or use softplus or relu as they are meant",
    ),
    Known(
        "torch",
        "2.10",
        ("LR-24",),
        (VERDICT, BEHAVIOUR),
        "",
        "a scheduler with one value for each group refuses a group that is added later: add the"
        " group before you build the scheduler",
    ),
    Known(
        "torch",
        "2.10",
        ("LR-25",),
        (VERDICT, BEHAVIOUR),
        "",
        "a tensor as learning rate is no longer aliased by the schedulers: warm-ups reach the rate"
        " that you set, so trainings that were tuned on the old one run at a higher rate",
    ),
    Known(
        "torch",
        "2.11",
        ("AMP-07",),
        (VERDICT, BEHAVIOUR),
        "",
        "a forward pass under no_grad no longer takes gradients away inside autocast: a work-around"
        " that clears the cache can go",
    ),
    Known(
        "torch",
        "2.12",
        ("INIT-03",),
        (VERDICT, BEHAVIOUR),
        "",
        "trunc_normal_ in bfloat16 and float16 no longer draws outliers at its bounds: initial"
        " weights differ for the same seed",
    ),
    Known(
        "torch",
        "2.15",
        ("OPT-21",),
        (VERDICT, BEHAVIOUR),
        "",
        "in bfloat16 Muon no longer cuts its momentum down to length 1 in every step: earlier"
        " gradients count again, as in float32",
    ),
    Known(
        "torch",
        "2.14",
        ("OPT-11", "OPT-23"),
        (SIGNATURE, VERDICT),
        "",
        "LBFGS takes maximize, too",
    ),
    Known(
        "torch",
        "2.13",
        ("DDP-01", "DDP-02", "DDP-03", "DDP-04", "DDP-05", "DDP-09"),
        (SIGNATURE,),
        "DistributedDataParallel",
        "broadcast_buffers gives way to forward_sync_buffers, which still copies buffers once at"
        " the start: name the new one, and look whether you relied on False to keep them apart",
    ),
    Known(
        "torch",
        "2.15",
        ("DDP-01", "DDP-02", "DDP-03", "DDP-04", "DDP-05", "DDP-09"),
        (SIGNATURE,),
        "DistributedDataParallel",
        "lazy_bucket_allocation can be asked for; what you pass is not touched",
    ),
    Known(
        "torch",
        "2.14",
        ("CKPT-08", "TC-01", "TC-02", "TC-03", "TC-04"),
        (SIGNATURE,),
        "compile",
        "torch.compile calls shapes_spec dynamic_shapes: the old keyword is a TypeError",
    ),
    Known(
        "pytorch-lightning",
        "2.6",
        ("PL-05",),
        (BEHAVIOUR,),
        "",
        "checkpoints are read as torch.load reads them: save plain hyperparameters, or pass"
        " weights_only=False for files that you trust",
    ),
    Known(
        "pytorch-lightning",
        "2.6",
        ("PL-15",),
        (BEHAVIOUR,),
        "last.ckpt",
        "last.ckpt beside a monitor is no longer the last epoch: to resume from, add a second"
        " ModelCheckpoint without monitor",
    ),
    Known(
        "pytorch-lightning",
        "2.6",
        ("PL-01",),
        (BEHAVIOUR, SIGNATURE),
        "",
        "Trainer(enable_autolog_hparams=False) keeps hyperparameters from the loggers",
    ),
    Known(
        "pytorch-lightning",
        "2.6",
        ("PL-07",),
        (BEHAVIOUR,),
        "",
        "freeze() and unfreeze() give the module back (2.6.1): model = Model().freeze() works",
    ),
    Known(
        "pytorch-lightning",
        "2.6",
        ("PL-78",),
        (BEHAVIOUR,),
        "with workers=True",
        "workers that seed_everything(workers=True) seeds draw other numbers: augmentations differ"
        " for the same seed",
    ),
)

#: What to do about a change that the project does not know, by its class.
ADVICE = {
    VERDICT: "read the rule (pytest specs --rule {id}), and look for code that relies on it",
    BEHAVIOUR: "the same code computes something else: look at the observation in the spec of {id},"
    " and train once with both releases",
    WARNING: "look at filters and handlers of warnings: they match category and file",
    SIGNATURE: "look for calls that pass these arguments, or leave them to their defaults",
    TEXT: "look for code and tests that match the message",
}


def known(change: Change, old: Ledger, new: Ledger) -> Known | None:
    """The known change that lies between the two ledgers' releases, whichever is the older one."""
    for one in KNOWN:
        releases = [ledger["versions"].get(one.package) for ledger in (old, new)]
        if None in releases or change.kind not in one.kinds or one.where not in change.where:
            continue
        first, last = sorted(as_release(release) for release in releases)
        if set(one.rules) & set(change.rules) and first < as_release(one.since) <= last:
            return one
    return None


def advice(change: Change, old: Ledger, new: Ledger) -> str:
    """Since when, if the project knows, and what to do."""
    found = known(change, old, new)
    if found is not None:
        return f"since {found.package} {found.since}: {found.advice}"
    return ADVICE[change.kind].format(id=change.rules[0])
