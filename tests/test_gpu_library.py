"""The stages of `make gpu` for the CUDA kernels, without a GPU: building them, the sanitizer's verdict, the soak's."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import jsonschema
import pytest

from benchmarks.gpu import library, micro, sanitizer, soak, stages
from benchmarks.record import RESULTS
from fusedrnn import _cuda_library
from fusedrnn.dispatch import REGISTRY


@pytest.fixture
def a_folder_of_tools(tmp_path, monkeypatch):
    """Alone on the path; a tool in it says something and ends with a status."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))

    def make(name: str, script: str) -> None:
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)

    return make


def test_a_library_that_runs_here_is_kept(monkeypatch, a_folder_of_tools):
    monkeypatch.setattr(library, "missing", lambda: "")
    assert library.build(10) == ""


def test_a_library_is_built_for_the_gpu_that_is_here(tmp_path, monkeypatch, a_folder_of_tools):
    path, reasons = tmp_path / "_cuda.so", iter(("it is not there", ""))
    monkeypatch.setattr(_cuda_library, "path", lambda: path)
    monkeypatch.setattr(library, "missing", lambda: next(reasons))
    monkeypatch.setattr(micro, "architecture", lambda: "90a")
    a_folder_of_tools("nvcc", 'while [ "$1" != -o ]; do arguments="$arguments $1"; shift; done; echo $arguments > "$2"')
    assert library.build(10) == ""
    assert "arch=compute_90a,code=sm_90a" in path.read_text() and "forward.cu" in path.read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [("", "nvcc is not on the path"), ("echo no such file >&2; exit 2", "nvcc failed: no such file"),
     ("/bin/sleep 5", "nvcc took more than 1 s")],
)  # fmt: skip
def test_what_is_said_where_it_cannot_be_built(script, said, tmp_path, monkeypatch, a_folder_of_tools):
    monkeypatch.setattr(_cuda_library, "path", lambda: tmp_path / "_cuda.so")
    monkeypatch.setattr(library, "missing", lambda: "torch sees no GPU")
    monkeypatch.setattr(micro, "architecture", lambda: "90a")
    if script:
        a_folder_of_tools("nvcc", script)
    assert library.build(1).startswith(said)


def test_a_library_that_is_cut_off_is_not_loaded(tmp_path):
    cut = tmp_path / "cut.so"
    cut.write_bytes(b"\x7fELF\x02\x01" + bytes(34) + (10**6).to_bytes(8, "little") + bytes(10) + b"\x40\0\x1e\0\0\0")
    assert _cuda_library._load(cut, named=True) == f"{cut} does not load (the file is cut off)"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    functions = (f'extern "C" long fusedrnn_cuda_{name}() {{ return 0; }}\n' for name in _cuda_library._FUNCTIONS)
    source, built = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text("".join(functions))
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", built], check=True)
    monkeypatch.setattr(_cuda_library, "_functions", {})
    assert (
        _cuda_library._load(built, True) == f"{built} has interface 0, not {_cuda_library._INTERFACE}: build it again"
    )


def test_why_the_backend_is_missing_is_asked_of_a_new_process():
    assert library.missing() == (REGISTRY["cuda"].unavailable_reason() or "")


@pytest.mark.parametrize(
    ("script", "outcome", "said"),
    [
        ("exit 0", "passed", ""),
        ("echo 1 error; exit 9", "failed", "1 error"),
        ("echo ERROR SUMMARY: 3 errors; exit 1", "failed", "ERROR SUMMARY: 3 errors"),
        ("echo ERROR SUMMARY: 0 errors; exit 1", "skipped", "ERROR SUMMARY: 0 errors"),
        ("echo Device not supported; exit 9", "skipped", "Device not supported"),
        ("echo no GPU >&2; exit 1", "skipped", "no GPU"),
        ("echo begun; /bin/sleep 5", "skipped", "it took more than 1 s\nbegun"),
        (None, "skipped", "compute-sanitizer is not on the path"),
    ],
)
def test_the_verdict_of_the_sanitizer(script, outcome, said, monkeypatch, a_folder_of_tools):
    monkeypatch.setattr(REGISTRY["cuda"], "unavailable_reason", lambda: None)
    if script is not None:
        a_folder_of_tools("compute-sanitizer", script)
    found = sanitizer.run("memcheck", 1)
    assert (found["name"], found["outcome"], found["said"]) == (sanitizer.name_of("memcheck"), outcome, said)


def test_the_sanitizer_looks_at_our_kernels_alone(monkeypatch, a_folder_of_tools):
    monkeypatch.setattr(REGISTRY["cuda"], "unavailable_reason", lambda: None)
    a_folder_of_tools("compute-sanitizer", 'echo "$@"; echo records $NV_COMPUTE_SANITIZER_MAX_RACECHECK_CLUSTER_RECORDS'
                                           "; exit 9")  # fmt: skip
    said = {tool: sanitizer.run(tool, 5)["said"] for tool in sanitizer.TOOLS}
    for tool in sanitizer.TOOLS:
        assert said[tool].startswith(f"--tool {tool} ") and said[tool].endswith("records 0")
        assert " --kernel-name kns=layer_kernel " in said[tool]
    sources = "".join(file.read_text() for file in library.KERNELS.glob("*.cuh"))
    assert re.findall(r"__global__ .* (\w+)\(", sources) == ["layer_kernel"]
    assert "--report-api-errors no" in said["memcheck"] and "--report-api-errors" not in said["racecheck"]


def test_of_what_the_sanitizer_says_both_ends_are_kept(monkeypatch, a_folder_of_tools):
    monkeypatch.setattr(REGISTRY["cuda"], "unavailable_reason", lambda: None)
    a_folder_of_tools("compute-sanitizer", "echo first; printf '%05000d' 0; echo last; exit 9")
    said = sanitizer.run("memcheck", 5)["said"]
    assert said.startswith("first") and said.endswith("last") and len(said) < 2 * sanitizer.SAID + 10


def test_without_the_kernels_there_is_nothing_to_check(a_folder_of_tools):
    a_folder_of_tools("compute-sanitizer", "exit 0")
    if reason := REGISTRY["cuda"].unavailable_reason():
        found = sanitizer.run("racecheck", 1)
        assert (found["outcome"], found["said"]) == ("skipped", reason)


def test_the_stage_keeps_the_verdicts_fails_with_them_and_runs_again_what_has_not_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
    outcomes, started = {"memcheck": "passed", "racecheck": "failed"}, []

    def run(tool, seconds):
        started.append(tool)
        return verdict(sanitizer.name_of(tool), outcomes[tool])

    monkeypatch.setattr(sanitizer, "run", run)
    place = stages.Place(tmp_path)
    assert stages.run_sanitizer(place, soon()) == 1
    assert [test["outcome"] for test in kept(place, "sanitizer")] == ["passed", "failed"]
    outcomes["racecheck"] = "passed"
    assert stages.run_sanitizer(place, soon()) == 0
    assert started == ["memcheck", "racecheck", "racecheck"]
    monkeypatch.setattr(library, "sources", lambda: "others")
    assert stages.run_sanitizer(place, soon()) == 0
    assert started[3:] == ["memcheck", "racecheck"]


def kept(place: stages.Place, stage: str) -> list[dict]:
    content = json.loads(place.file("tests").read_text())
    jsonschema.validate(content, json.loads((RESULTS / "schema.json").read_text()))
    return place.tests(stage)


def soon() -> float:
    return stages.time.monotonic() + 5


def verdict(name: str, outcome: str = "passed") -> dict:
    return {"name": name, "outcome": outcome, "seconds": 1.0, "said": ""}


def test_verdicts_share_a_file_and_replace_those_of_their_stage_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
    place, earlier = stages.Place(tmp_path / "now"), stages.Place(stages.RESULTS)
    earlier.keep_tests("soak", [verdict("soak of 3 layers")])
    earlier.keep_tests("sanitizer", [verdict("sanitizer: memcheck", "failed")])
    place.keep_tests("tests", [verdict("tests/gpu/test_gpu.py::test_a"), verdict("tests/gpu/test_gpu.py::test_b")])
    place.keep_tests("sanitizer", [verdict("sanitizer: memcheck")])
    place.keep_tests("tests", [verdict("tests/gpu/test_gpu.py::test_a", "failed")])
    assert kept(place, "tests") == [verdict("tests/gpu/test_gpu.py::test_a", "failed")]
    assert kept(place, "sanitizer") == [verdict("sanitizer: memcheck")]
    assert kept(place, "soak") == kept(earlier, "soak")  # no run lost what an earlier one had found
    assert [path.name for path in place.folder.iterdir()] == [place.file("tests").name]


@pytest.fixture
def a_soak(tmp_path, monkeypatch):
    """Of four layers that are made right or wrong by number: what is said of them, and the numbers that were run."""
    monkeypatch.setattr(REGISTRY["cuda"], "unavailable_reason", lambda: None)
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
    monkeypatch.setattr(stages.layers, "lost", lambda: False)
    monkeypatch.setattr(soak, "lost", lambda: False)
    monkeypatch.setattr(soak, "WHOLE", 4)
    monkeypatch.setattr(soak, "drawn", lambda number, *_: Made(number))
    faults, ran = {}, []

    def wrong(layer, device):
        ran.append(layer.number)
        if isinstance(said := faults.get(layer.number, ""), BaseException):
            raise said
        return said

    monkeypatch.setattr(soak, "wrong", wrong)
    return faults, ran


class Made:
    def __init__(self, number: int):
        self.number = number

    def __str__(self):
        return f"layer {self.number}"


def verdict_of_soak(place: stages.Place) -> tuple[str, str, int]:
    [found] = kept(place, "soak")
    return found["outcome"], found["said"], found["count"]


def test_a_soak_is_run_once_for_each_state_of_the_kernels(tmp_path, monkeypatch, capsys, a_soak):
    place, (_, ran) = stages.Place(tmp_path), a_soak
    assert stages.run_soak(place, soon()) == 0
    assert verdict_of_soak(place) == ("passed", "4 were right", 4) and ran == [0, 1, 2, 3]
    capsys.readouterr()
    assert stages.run_soak(place, soon()) == 0
    assert capsys.readouterr().out == "all run before\n" and len(ran) == 4
    monkeypatch.setattr(library, "sources", lambda: "others")
    assert stages.run_soak(place, soon()) == 0
    assert len(ran) == 8 and not place.under_way("soak").exists()


def test_a_soak_goes_on_where_an_earlier_call_stopped(tmp_path, monkeypatch, a_soak):
    faults, ran = a_soak
    earlier, place = stages.Place(stages.RESULTS), stages.Place(tmp_path)
    earlier.folder.mkdir()
    faults[0], deadline = "too far", soon()
    with monkeypatch.context() as patched:  # the time is over with the second
        patched.setattr(stages, "time", SimpleNamespace(monotonic=lambda: deadline if len(ran) == 2 else 0))
        assert stages.run_soak(earlier, deadline) == 1
    assert verdict_of_soak(earlier) == ("failed", "layer 0: too far", 2)
    assert stages.run_soak(place, soon()) == 1
    assert verdict_of_soak(place) == ("failed", "layer 0: too far", 4) and ran == [0, 1, 2, 3]


def test_an_error_costs_its_layer_and_a_trap_the_process(tmp_path, monkeypatch, a_soak):
    place, (faults, ran) = stages.Place(tmp_path), a_soak
    faults |= {1: ValueError("no such place\nas that"), 2: RuntimeError("a kernel trapped")}
    for module in (soak, stages.layers):
        monkeypatch.setattr(module, "lost", lambda: ran[-1] == 2)
    assert stages.run_soak(place, soon()) == stages.FATAL
    said = "layer 1: no such place; layer 2: a kernel trapped"
    assert verdict_of_soak(place) == ("failed", said, 3) and ran == [0, 1, 2]
    assert stages.run_soak(place, soon()) == 1
    assert verdict_of_soak(place) == ("failed", said, 4) and ran == [0, 1, 2, 3]


def test_the_layer_over_which_a_soak_ended_is_a_fault(tmp_path, a_soak):
    place, (faults, ran) = stages.Place(tmp_path), a_soak
    faults |= {0: "too far", 2: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        stages.run_soak(place, soon())
    stages.bury(place, "soak")
    said = "layer 0: too far; 2: the process that measured it ended"
    assert verdict_of_soak(place) == ("failed", said, 3)
    assert stages.run_soak(place, soon()) == 1
    assert verdict_of_soak(place) == ("failed", said, 4) and ran == [0, 1, 2, 3]


def test_a_soak_without_the_kernels_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(REGISTRY["cuda"], "unavailable_reason", lambda: "not built")
    place = stages.Place(tmp_path)
    assert stages.run_soak(place, soon()) == 0
    [verdict] = kept(place, "soak")
    assert (verdict["outcome"], verdict["said"]) == ("skipped", "not built")
