"""Teach a model a tissue: ``python finetune.py key=value ...``; ``python finetune.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("finetune")
