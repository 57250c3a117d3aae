"""Files, processors, memory and worker processes."""
