"""A plugin of napari: reads and writes mitoseg's volumes, predicts, measures and corrects; see docs/VIEWERS.md.

What computes (predicting, measuring, correcting, saving, layer_data) knows no Qt; panels and tasks are thin.
"""
