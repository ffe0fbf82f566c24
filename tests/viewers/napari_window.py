"""napari with the plugin on a phantom, from prediction to correction; run alone, it makes the picture of the docs.

    xvfb-run -s "-screen 0 1600x1000x24" python tests/viewers/napari_window.py docs/images/napari.png

It prints, as JSON, what was found on the way.
"""

import json
import sys
import time

import napari
import numpy as np
from qtpy.QtWidgets import QApplication

from mitoseg.datasets.synthetic import generate_phantom
from mitoseg.viewers.napari_plugin.widget import Segmenter

SHAPE = (16, 320, 400)


def work(seconds=0.5):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def finish(window, seconds=600):
    end = time.monotonic() + seconds
    while window.tasks.busy:
        assert time.monotonic() < end, "it takes too long"
        QApplication.processEvents()
        time.sleep(0.01)


def main(output):
    image_zyx, label_zyx, _ = generate_phantom(SHAPE, 3)
    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1500, 950)
    viewer.add_image(image_zyx, name="phantom", scale=(5, 5, 5), units=("nm",) * 3)
    viewer.scale_bar.visible = True
    window = Segmenter(viewer)
    viewer.window.add_dock_widget(window, name="Segment mitochondria", area="right")
    window.predicting.greys.setCurrentText("matched to training")
    window.run_prediction()
    finish(window)
    layer = window.instances.labels.layer
    found, true = layer.data > 0, label_zyx > 0
    jaccard = float((found & true).sum() / (found | true).sum())
    window.tabs.setCurrentWidget(window.instances)
    window.editor.measure()
    finish(window)
    table = window.instances.table
    first = table.table["instance"].tolist()[:2]
    window.instances.ids.setText(", ".join(map(str, first)))
    window.editor.merge()
    finish(window)
    merged = len(np.unique(layer.data)) - 1
    window.editor.undo()
    finish(window)
    table.selectRow(int(table.table["voxels"].argmax()))
    viewer.reset_view()
    work()
    viewer.screenshot(output, canvas_only=False)
    rows = len(table.table)
    viewer.close()
    print(json.dumps({"jaccard": jaccard, "instances": rows, "merged": merged}))


if __name__ == "__main__":
    main(*sys.argv[1:])
