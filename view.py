"""Look at volumes in a browser: ``python view.py RUN`` or ``key=value ...``; ``--help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("view")
