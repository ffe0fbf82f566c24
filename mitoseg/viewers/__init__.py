"""Optional windows on volumes and results; each viewer is imported only where it is used."""
