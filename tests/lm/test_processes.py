"""The command line in a process of its own: closed streams, other encodings, packages that are missing or broken."""

import os
import subprocess
import sys

from fusedrnn.cli import main
from fusedrnn.lm.run_folder import resume

TINY = ["--hidden", "8", "--batch-size", "4", "--steps", "5", "--max-tokens", "500", "--epochs", "2"]


def test_a_run_that_nobody_reads_is_left_as_by_an_interruption(tmp_path):
    command = [sys.executable, "-m", "fusedrnn.cli", "train", "pydoc", *TINY, "--epochs", "100000"]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("gru 8, ")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=120) == 128 + 13
    assert said.startswith("interrupted after step ")
    assert said.endswith(f"; go on: fusedrnn train --resume {tmp_path / 'run'}\n")
    assert 0 < resume(tmp_path / "run")[0].step < 100_000


def python(code, *arguments, **environment):
    """Of a process whose standard input is closed: (exit status, standard output, standard error)."""
    command = [sys.executable, "-c", f"import os, sys\nos.close(0)\nsys.stdin = None\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=120, env=os.environ | environment)
    return done.returncode, done.stdout, done.stderr.decode()


SAMPLE, TRAIN, PLOT = (
    f"from fusedrnn.cli import main\nsys.exit(main(['{command}', *sys.argv[1:]]))"
    for command in ("sample", "train", "plot")
)
MISSING = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_output_that_takes_ascii_alone(tmp_path):
    (tmp_path / "verse.txt").write_text("d\u00e9j\u00e0 vu.\n" * 60)
    assert main(["train", str(tmp_path / "verse.txt"), *TINY, "--out", str(tmp_path / "run")]) == 0
    options = ["--prompt", "d\u00e9j\u00e0", "--length", "0"]
    status, out, _ = python(SAMPLE, tmp_path / "run", *options, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (status, out) == (0, b"d?j?\n")


def test_sample_needs_no_matplotlib_and_training_finds_out_at_once(run):
    status, _, err = python(MISSING + SAMPLE, run)
    assert status == 0, err
    status, out, err = python(MISSING + TRAIN, "--resume", run, "--epochs", "3")
    assert (status, out) == (2, b"")
    assert err == "fusedrnn: error: the package matplotlib is missing: pip install 'fusedrnn[lm]'\n"


def test_a_package_that_is_broken_is_said_in_one_line(run, tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('libfreetype.so.6: no such file')")
    status, _, err = python(f"sys.path.insert(0, sys.argv.pop())\n{PLOT}", run, tmp_path)
    assert (status, err) == (
        2,
        "fusedrnn: error: a package cannot be imported: libfreetype.so.6: no such file\n",
    )


def test_standard_input_that_is_closed(run):
    status, _, err = python(SAMPLE, run, "--prompt-file", "-")
    assert (status, err) == (2, "fusedrnn: error: cannot read standard input: it is closed\n")
