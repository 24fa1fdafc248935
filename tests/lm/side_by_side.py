"""Two workers as torchrun starts them, forked from one process that has imported everything.

python tests/lm/side_by_side.py COMMANDS: the JSON of a list of command lines, one run after the other.
"""

import json
import os
import socket
import sys

import torch

from fusedrnn.cli import main
from fusedrnn.lm import checkpoint, plots, progress, run_folder  # noqa: F401

torch.set_num_threads(1)
torch.optim.Adam([torch.zeros(1)])  # imports more


def run(arguments: list[str]) -> int:
    """The larger exit status of the two."""
    processes = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in ("0", "1"):
        if pid := os.fork():
            processes.append(pid)
            continue
        os.environ |= {"TORCHELASTIC_RUN_ID": "here", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os._exit(main(arguments))
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes)


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        assert run(arguments) == 0, arguments
