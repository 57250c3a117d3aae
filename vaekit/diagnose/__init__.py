"""What this machine can run, and how fast a bundle is on it."""
