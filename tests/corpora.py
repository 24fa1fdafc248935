"""For tests that need the corpora."""

import os
from pathlib import Path

import pytest

with_corpora = pytest.mark.skipif(
    not Path(os.environ.get("FUSEDRNN_DATA", ""), "timemachine.txt").is_file(),
    reason="FUSEDRNN_DATA names no folder that holds timemachine.txt",
)
