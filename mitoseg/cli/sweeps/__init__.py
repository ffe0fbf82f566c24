"""Sweeps: many runs from one command line, each a process of its own.

plan.py            which folder, which words vary, how seeds=N becomes a sweep, which device or cores a job gets
jobs.py            one job: skip, resume or run it in a process group of its own, and the table at the end
results.py         results.csv and summary.csv
optuna_sweeper.py  the sweeper that searches (hydra/sweeper=optuna)
search.py          Optuna's part of it, imported when a search begins
"""
