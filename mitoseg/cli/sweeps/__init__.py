"""Sweeps: many runs from one command line, each a process of its own.

plan.py        which folder, which words vary, and how seeds=N becomes a sweep
names.py       folder names from words
job.py         one job: skip, resume or run, and what is written down about it
process.py     a job's process group: its environment, its end, and its parent's death
slots.py       which device or cores a job gets when several run at once
results.py     results.csv and summary.csv
conclusion.py  the end: the table, and the line for jobs that failed
sweeper.py     the sweeper that searches (hydra/sweeper=optuna); search.py is Optuna's part of it
"""
