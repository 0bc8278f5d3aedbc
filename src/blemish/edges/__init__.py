"""Optional and heavy: packages that only some installations have. Nothing but the command line imports this room."""
