"""`blemish` and `python -m blemish`: the command line."""

from __future__ import annotations

import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while it loads."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that the terminal's encoding has not
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from .cli import app

        app(prog_name="blemish")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
