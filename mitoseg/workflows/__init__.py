"""The commands as functions: train, predict, evaluate, measure, ensemble, benchmark and export."""
