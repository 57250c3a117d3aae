"""The commands, one per file. Heavy modules are imported inside the commands that need them."""
