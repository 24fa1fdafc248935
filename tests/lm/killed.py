"""Train in processes that are killed at random moments and gone on with, beside one that is left alone.

python tests/lm/killed.py FOLDER KILLS SEED TEXT [OPTION...]; prints a JSON of what happened. Processes are forked from
one that has imported everything and has one thread.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from fusedrnn.cli import main
from fusedrnn.lm import checkpoint, plots, progress, run_folder  # noqa: F401

torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)])  # imports more


def begun(arguments: list[str], output: Path) -> int:
    """The process id of one that runs the command, its output in a file."""
    if pid := os.fork():
        return pid
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = main(arguments)
    os._exit(status)


def ended(pid: int, seconds: float, output: Path) -> bool:
    """Whether it ended, or had ended before, well before so many seconds had passed; else it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0 or "has ended" in output.read_text(), output.read_text()
            return True
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def command(run: Path, options: list[str]) -> list[str]:
    """What a user would type: to go on, or to begin anew where not even the options had been written."""
    if (run / "config.json").exists():
        return ["train", "--resume", str(run)]
    return ["train", *options, "--threads", "1", "--out", str(run), "--force"]


def chain(folder: Path, kills: int, seed: int, options: list[str]) -> dict:
    """Runs that are killed and gone on with until they end, one after the other, until there were so many kills."""
    random.seed(seed)
    start = time.monotonic()
    output = folder / "output.txt"
    assert ended(begun(command(folder / "alone", options), output), 100, output)
    duration = time.monotonic() - start
    steps, runs, before = [], 0, 0
    while len(steps) < kills or (folder / f"run{runs}").exists():
        run = folder / f"run{runs}"
        delay = random.uniform(0, duration / 2) if len(steps) < kills else 100
        if ended(begun(command(run, options), output), delay, output):
            runs += 1
            continue
        last = run / checkpoint.LAST
        before += (run / checkpoint.BEFORE).exists() and not last.exists()
        steps.append(last.stat().st_size if last.exists() else 0)
    return {"runs": runs, "kills": len(steps), "with_checkpoint": sum(size > 0 for size in steps), "between": before}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(json.dumps(chain(folder, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
