"""Compare methods: ``python benchmark.py key=value ...``; ``python benchmark.py --help`` lists the options."""

from mitoseg.cli.launch import run_command

if __name__ == "__main__":
    run_command("benchmark")
