"""Score a result: ``python evaluate.py key=value ...``; ``python evaluate.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("evaluate")
