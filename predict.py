"""Segment a volume: ``python predict.py key=value ...``; ``python predict.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("predict")
