"""`blemish` and `python -m blemish`: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while it loads."""
    try:
        from .cli import app

        app(prog_name="blemish")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
