"""The CUDA kernels compiled for sm_90a and sm_100: nothing spills, all fits a multiprocessor, a step is what was
planned. They are as recorded for these sources; some are compiled again.

It needs nvcc and Triton's tools, and no GPU."""

import shutil
from collections import Counter

import pytest

pytest.importorskip("triton")

from benchmarks import cubins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc"),
]


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[cubins.Kernel]]:
    record = cubins.Record.read()
    assert record.sources == cubins.sources(), "the sources have changed: python -m benchmarks.cubins --record"
    return record.kernels


@pytest.mark.parametrize("sm", cubins.RECORDED)
def test_kernels_are_as_recorded(recorded, sm, tmp_path):
    """Of each way, kind of number, and CTA, cluster or grid, the one that takes the most registers."""
    largest = {}
    for kernel in sorted(recorded[sm], key=lambda kernel: kernel.registers):
        largest[kernel.way, kernel.element, kernel.ctas > 1, kernel.of_grid] = kernel
    again = cubins.some(largest.values(), sm, tmp_path)
    assert len(again) == len(largest) == 22
    if cubins.compiler() == cubins.Record.read().compiler:
        for one, kept in zip(sorted(again, key=str), sorted(largest.values(), key=str), strict=True):
            assert_alike(one, kept)
    assert not [(str(kernel), found) for kernel in again if (found := cubins.faults(kernel))]


def assert_alike(found: cubins.Kernel, kept: cubins.Kernel) -> None:
    """The same but for a few moves of registers, which ptxas makes otherwise among other kernels of a file."""
    moves = found.step["others"], kept.step["others"]
    assert abs(moves[0] - moves[1]) <= 0.02 * moves[1], str(kept)
    step = Counter({**kept.step, "others": moves[0]})
    assert abs(found.registers - kept.registers) <= 8, str(kept)
    assert found == kept._replace(registers=found.registers, step=step)


@pytest.mark.parametrize("sm", cubins.RECORDED)
def test_every_kernel_is_as_it_was_planned(recorded, sm):
    kernels = recorded[sm]
    assert {kernel.way for kernel in kernels} == set(cubins.WAYS)
    assert {kernel.element for kernel in kernels} == {"bf16", "f16", "tf32", "ieee"}
    assert sum(kernel.plain for kernel in kernels) * 2 == len(kernels) > 320
    assert not [(str(kernel), found) for kernel in kernels if (found := cubins.faults(kernel))]


def test_a_step_of_inference_is_expected_within_its_target(recorded, tmp_path):
    """0.26 us for 64 units, 0.50 for 128."""
    wanted = ("forward", "lstm", "bf16", 0, True)
    lstm = [k for k in recorded["90a"] if (k.way, k.cell, k.element, k.inputs, k.plain) == wanted]
    steps = {k.units: max(cubins.cycles(k)) / cubins.CLOCK for k in cubins.inference(lstm, "90a", tmp_path)}
    assert steps.keys() == {64, 128, 256, 512, 768, 1024, 1280, 2048}
    assert steps[64] <= 0.26 and steps[128] <= 0.50


def test_what_is_not_as_planned_is_a_fault():
    step = Counter(HMMA=4, BAR=2)
    kernel = cubins.Kernel("forward", "lstm", "bf16", 8, 64, 8, 64, 0, 1, 1, True, 255, 16, 8, step)
    assert cubins.faults(kernel) == [
        "spills 8 bytes, a stack of 16",
        "4 matrix products a step, not 8",
        "2 barriers and 0 asynchronous copies a step",
    ]
    right = kernel._replace(stack=0, spilled=0, step=Counter(HMMA=8, BAR=1, LDGSTS=1))
    assert not cubins.faults(right)
    assert not cubins.faults(right._replace(inputs=32, step=Counter(HMMA=12, BAR=1, LDGSTS=1)))
    plain = right._replace(element="ieee", rows=2, warps=4)
    assert not cubins.faults(plain._replace(step=Counter(FFMA=300, BAR=1, LDGSTS=1)))
    assert cubins.faults(plain._replace(step=Counter(FFMA=200, BAR=1, LDGSTS=1))) == [
        "200 multiplications and additions a step, not 256 and up to 100"
    ]
    assert cubins.faults(right._replace(warps=16, step=Counter(HMMA=4, BAR=1, LDGSTS=1))) == ["255 registers a thread"]
