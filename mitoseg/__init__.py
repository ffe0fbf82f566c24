"""Mitochondria in electron-microscopy volumes: segmentation, scores and measurements."""

__version__ = "0.1.0"
