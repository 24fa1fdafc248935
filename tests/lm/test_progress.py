import io

import pytest
import rich.console

from fusedrnn.lm.progress import Progress
from fusedrnn.lm.trainer import Epoch


def told(epochs, label="some [text]", **options):
    output = io.StringIO()
    console = rich.console.Console(file=output, highlight=False, markup=False, soft_wrap=True, **options)
    with Progress(epochs, 3, label, console) as progress:
        for number in range(1, epochs + 1):
            progress.advance(3 * number)
            progress(Epoch(number, 2.5, 12.182, None, None, 1.0, 123_456.7, 2.0 * number))
    return output.getvalue()


def test_plain_lines_one_a_stretch():
    lines = told(100).splitlines()
    assert len(lines) == 21
    assert lines[0] == "some [text]  epoch   1/100  loss 2.5000  perplexity 12.182  123,457 tokens/s  ETA 3:18"
    assert lines[-1] == "some [text]  epoch 100/100  loss 2.5000  perplexity 12.182  123,457 tokens/s  ETA 0:00"


@pytest.mark.parametrize("epochs", [1, 2, 19, 21, 33])
def test_few_epochs(epochs):
    assert min(epochs, 10) <= len(told(epochs).splitlines()) <= min(epochs, 22)


@pytest.mark.parametrize("label", ["timemachine", "pydoc (standing in for timemachine)"])
def test_terminal_line_rewrites_itself_and_fits(label):
    output = told(500, label, force_terminal=True, width=80)
    last = output.rsplit("\x1b[2K", 1)[-1].split("\x1b")[0].splitlines()[0].rstrip()
    assert last.startswith("epoch 500/500  loss 2.5000  perplexity 12.182  123,457 tokens/s  ETA 0:00")
    assert len(last) <= 80
    assert output.count("\n") <= 2


def test_a_terminal_that_cannot_rewrite_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert told(100, force_terminal=True) == told(100)
