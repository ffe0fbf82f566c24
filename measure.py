"""Measure mitochondria: ``python measure.py key=value ...``; ``python measure.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("measure")
