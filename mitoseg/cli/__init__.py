"""Entry points: command lines, one-line errors, exit codes."""
