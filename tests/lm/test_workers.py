"""torchrun with two processes on this machine's CPU, over gloo."""

import csv
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import distributed

from fusedrnn.cli import main
from fusedrnn.lm import ConfigError, RunFolderError, TrainConfig, Trainer
from fusedrnn.lm.run_folder import resume
from fusedrnn.lm.workers import Workers

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch was built without gloo"
)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
SMALL = ["train", "pydoc", "--hidden", "16", "--batch-size", "8", "--steps", "10", "--max-tokens", "1300"]
SMALL += ["--validation", "0.2", "--cell", "lstm"]


def torchrun():
    """Two processes of the command line, which meet at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return [*TORCHRUN, "--master-port", str(free.getsockname()[1]), "-m", "fusedrnn.cli"]


def call(command, *arguments):
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


def left(folder):
    """Weights, and the columns of metrics.csv that are no times."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    losses = [float(row[name]) for row in rows for name in ("loss", "validation_loss")]
    return safetensors.torch.load_file(folder / "model.safetensors"), losses


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_batch(tmp_path):
    """In parts too, which each process has of its own."""
    options = [*SMALL, "--epochs", "3", "--accumulate", "2"]
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    said = call(torchrun(), *options, "--out", tmp_path / "two").stdout
    assert said.count("processes 2") == said.count("run folder") == 1
    (weights, losses), (others, other_losses) = left(tmp_path / "one"), left(tmp_path / "two")
    assert len(losses) == 6
    assert other_losses == pytest.approx(losses, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_go_on_to_the_bit(tmp_path):
    options = [*SMALL, "--dropout", "0.3", "--optimizer", "adam", "--lr", "0.01"]
    commands = [
        [*options, "--epochs", "4", "--out", f"{tmp_path}/whole"],
        [*options, "--epochs", "2", "--out", f"{tmp_path}/run"],
        ["train", "--resume", f"{tmp_path}/run", "--epochs", "4"],
    ]
    call([sys.executable, Path(__file__).with_name("side_by_side.py")], json.dumps(commands))
    (weights, losses), (others, other_losses) = left(tmp_path / "whole"), left(tmp_path / "run")
    assert losses == other_losses
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    with pytest.raises(RunFolderError, match="of another run: processes differ"):
        resume(tmp_path / "run")


@pytest.mark.slow
def test_a_signal_to_one_ends_both_after_the_same_step(tmp_path):
    folder = tmp_path / "run"
    command = [*torchrun(), *SMALL, "--epochs", "100000", "--save-every", "0", "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        end = time.monotonic() + 60
        while not (folder / "config.json").exists() and time.monotonic() < end:
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=60)[0]
    assert "interrupted after step" in said
    assert "go on: fusedrnn train --resume" in said
    with safetensors.safe_open(folder / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fusedrnn"])["state"]["step"] > 0


def test_streams_that_do_not_divide(small):
    with pytest.raises(ConfigError, match="7 streams do not divide among 2 processes"):
        Trainer(TrainConfig(batch_size=7), small, workers=Workers(0, 2))
    with pytest.raises(ConfigError, match="6 streams do not divide among 2 processes of 2 parts each"):
        Trainer(TrainConfig(batch_size=6, accumulate=2), small, workers=Workers(1, 2))
