"""Sweeps: many runs from one command line, each a process of its own."""
