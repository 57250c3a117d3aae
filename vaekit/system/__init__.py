"""The machine: files written whole, processors, memory and worker processes."""
