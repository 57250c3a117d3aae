"""`python -m vaekit_cli` is `vaekit`."""

from vaekit_cli.main import main

if __name__ == "__main__":
    main()
