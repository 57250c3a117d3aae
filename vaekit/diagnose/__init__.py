"""Find out what this machine can run, and how fast it runs a bundle."""
