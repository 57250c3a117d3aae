"""One file per command. What is heavy is imported inside the command that needs it."""
