"""The model of training by many processes."""

import pytest

from benchmarks.scaling import Network, efficiency, most_processes, seconds_of_averaging, table

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


def test_table_has_a_row_for_each_network():
    lines = table("d2l-gru", 226_844, 0.0146)
    assert "226,844 parameters, 0.91 MB of gradients, 14.6 ms" in lines[0]
    assert lines[4].startswith("| 1 Gbit/s Ethernet | 66% | 52% | ")
    assert len(lines) == 9
