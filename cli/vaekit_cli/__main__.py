"""Run `vaekit` as `python -m vaekit_cli`."""

from vaekit_cli.main import main

if __name__ == "__main__":
    main()
