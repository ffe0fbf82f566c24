"""Train a network: ``python train.py key=value ...``; ``python train.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("train")
