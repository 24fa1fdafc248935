"""One file a backend: its capability facts, and the launch."""
