"""A plugin of napari: reads and writes mitoseg's volumes, predicts, measures and corrects; see docs/VIEWERS.md."""
