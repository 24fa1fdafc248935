"""The model of training by many processes."""

import pytest
from corpora import with_corpora

from benchmarks.scaling import Network, Steps, efficiency, measured, most_processes, seconds_of_averaging, section

SLOW = Network("slow", latency=1e-3, bandwidth=1e6)


def test_averaging_takes_every_byte_twice_around_the_ring():
    assert seconds_of_averaging(10**6, 2, SLOW) == pytest.approx(2e-3 + 4)
    assert seconds_of_averaging(10**6, 4, SLOW) == pytest.approx(6e-3 + 6)
    assert seconds_of_averaging(10**6, 1, SLOW) == 0


def test_efficiency_falls_with_processes_and_rises_with_compute():
    assert efficiency(4.002, 10**6, 2, SLOW) == pytest.approx(0.5)
    assert efficiency(4.002, 10**6, 4, SLOW) < 0.5 < efficiency(8, 10**6, 2, SLOW)
    assert most_processes(4.002, 10**6, SLOW) == 2
    assert most_processes(4.0, 10**6, SLOW) == 1
    assert most_processes(1e9, 10**6, SLOW) == 2**30


def test_a_section_tells_what_was_measured_and_what_is_modelled():
    alone, together = Steps(1, 226_844, 0.0146), Steps(2, 226_844, 0.0200, 0.0012)
    lines = section("d2l-gru", alone, together)
    assert lines[0] == "## `d2l-gru`"
    assert "226,844 parameters, 0.91 MB of gradients. Measured: 14.6 ms a step alone; 20.0 ms of 2" in lines[2]
    assert "each of 73% use; averaging that many numbers alone 1.2 ms" in lines[2]
    assert "model, not measured" in lines[4]
    assert lines[8].startswith("| 1 Gbit/s Ethernet | 66% | 52% | ")


@with_corpora
def test_two_processes_are_measured_here():
    found = measured("d2l-rnn", 2, processes=2)
    assert found.processes == 2 and found.parameters > 70_000
    assert 0 < found.averaging < 1 and 0 < found.seconds < 10
