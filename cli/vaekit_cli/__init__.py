"""The `vaekit` command."""
