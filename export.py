"""Write a trained network as safetensors: ``python export.py key=value ...``; ``--help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("export")
