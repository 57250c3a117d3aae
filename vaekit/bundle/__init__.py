"""The bundle that `vaekit export` writes: its manifest, its files, and the checks before use."""
