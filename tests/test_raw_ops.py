"""Operands that do not fit raise: no raw op, private or public, crashes or reaches outside its operands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from raw_ops import KINDS, SAMPLES, operands_of, run, samples_of

from fusedrnn import _extension
from fusedrnn.backends.base import BackendError
from fusedrnn.ops import DIFFERENTIABLE

pytestmark = [
    pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason()),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
WORKER = Path(__file__).with_name("raw_ops.py")
EMPTY = ("absent", "no-rows", "no-columns", "no-batch", "lower")

# What fits all the same: these may be absent,
FITS = {
    "private-forward": dict.fromkeys(("saved", "cells"), EMPTY),
    "private-backward": dict.fromkeys(("dy", "dh_n", "dc_n", *(f"d{name}" for name in DIFFERENTIABLE)), EMPTY),
    "private-layers": {"x": ("taller", "lower"), "c0": ("absent",)},
    "private-layer": {"c0": ("absent",)},
    "public-forward": {"x": ("taller", "lower", "no-rows", "absent")},  # the number of steps is that of x
    "public-backward": dict.fromkeys(("dy", "dh_n", "dc_n"), ("absent",)) | dict.fromkeys(("b_ih", "b_hh"), EMPTY),
    "torch-forward": {"x": ("taller", "lower")},
    "torch-backward": dict.fromkeys(("dy", "dh_n", "dc_n"), ("absent",)),
}
# and, where the sample has them, these. What a cell has no use for may raise or go unread.
GIVEN_LENGTHS = {"lengths": (*EMPTY, "flipped")}
GIVEN_RESETS = {"resets": ("absent", "no-rows", "no-columns", "no-batch")}
TOKENS = {"x": ("gaps", "flipped"), "w_ih": ("longer", "no-columns", "no-batch")}


def fits(kind: str, sample: str, operand: str, misfit: str) -> bool:
    allowed = FITS[kind].get(operand, ())
    if "given" in sample:
        allowed += GIVEN_LENGTHS.get(operand, ())
    if "resets" in sample:
        allowed += GIVEN_RESETS.get(operand, ())
    if "tokens" in sample:
        allowed += TOKENS.get(operand, ())
    if kind not in ("private-forward", "private-backward"):
        allowed += ("gaps",)
    return misfit in (*allowed, "given")


def worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(WORKER.parent.parent)}  # `benchmarks` lies at the root
    command = [sys.executable, WORKER, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def table() -> list[tuple[str, str, str]]:
    """Kind, case and what it raised, of every case."""
    done = worker("table")
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_no_case_kills_the_process(table, kind):
    assert not [f"{case}: {raised}" for of, case, raised in table if of == kind and raised.startswith("killed")]


@pytest.mark.parametrize("kind", KINDS[:4])
def test_what_fits_stays_inside_its_operands(table, kind):
    fitting = {case: raised for of, case, raised in table if of == kind and len(case.split()) == 4}
    assert fitting
    assert not {case: raised for case, raised in fitting.items() if raised}


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_raises(table, kind):
    cases = [(case.split(), raised) for of, case, raised in table if of == kind]
    misfits = [(case, raised) for case, raised in cases if len(case) == 5]
    assert misfits
    assert not [" ".join(case) for case, raised in misfits if not raised and not fits(*case[:4])]


def test_random_operands_raise_or_return():
    done = worker("fuzz", "400")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1] if lines else ''}\n{done.stderr}"
    ends = [line.split()[0] for line in lines[1::2]]
    assert set(ends) == {"raised", "returned"}
    assert len(ends) >= 400


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        *((kind, "cell", value) for kind in KINDS[:2] for value in (-1, 4)),
        *((kind, "how", value) for kind in KINDS[2:4] for value in (-1, 32 + 64, 128, 2**62)),
        *((kind, "cell", value) for kind in KINDS[4:] for value in ("gru_reset_before", "")),
        *((kind, "direction", value) for kind in KINDS[4:] for value in (-1, 3)),
        *((kind, "backend", "cudnn") for kind in KINDS[4:]),
    ],
)
def test_unknown_options_raise(kind, option, value):
    for sample in samples_of(kind, SAMPLES[2:7]):
        operands = operands_of(kind, sample, torch.float32) | {option: value}
        with pytest.raises((RuntimeError, LookupError, ValueError)):
            run(kind, sample, operands)


@pytest.mark.parametrize("kind", KINDS[4:6])
def test_what_the_kernels_lack_is_refused(kind):
    sample = SAMPLES[4]
    given = torch.ones(sample.H, sample.H)
    with pytest.raises(BackendError, match="cpu: projection is not supported"):
        run(kind, sample, operands_of(kind, sample, torch.float32) | {"w_hr": given})
