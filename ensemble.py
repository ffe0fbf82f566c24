"""Combine checkpoints: ``python ensemble.py key=value ...``; ``python ensemble.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("ensemble")
