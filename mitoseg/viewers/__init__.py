"""Volumes and results in other people's viewers; each needs a library of the extra ``[viewers]``."""
