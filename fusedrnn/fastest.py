"""Where on a GPU which backend was measured to be the fastest, by compute capability. The first line counts that covers
a problem; what none covers goes to torch's library.

Written by `python -m benchmarks.gpu.fastest --write` from what `make gpu` left in benchmarks/results.
"""

from fusedrnn.backends.base import Fastest

ANY = 2**62  # no last

# No GPU has been measured.
ON_GPU: dict[tuple[int, int], tuple[Fastest, ...]] = {}
