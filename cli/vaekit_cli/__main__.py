"""Run `vaekit` as `python -m vaekit_cli`."""

import os
import sys

if __name__ == "__main__":
    # Python put the current folder on the path, where `vaekit` does not look: anyone's files may lie there.
    if not sys.flags.safe_path and os.path.realpath(sys.path[0] or os.curdir) == os.path.realpath(os.curdir):
        del sys.path[0]

    from vaekit_cli.main import main

    main()
