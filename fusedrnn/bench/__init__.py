"""One layer timed beside torch.nn, behind its gate: what `fusedrnn bench` and the repository's benchmarks share."""
