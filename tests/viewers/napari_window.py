"""napari with the plugin on a phantom, from prediction to correction; run alone, it makes the picture of the docs.

    xvfb-run -s "-screen 0 1600x1000x24" python tests/viewers/napari_window.py docs/images/napari.png

It prints, as JSON, what was found on the way.
"""

import json
import sys
import time

import numpy as np
from PIL import Image

from mitoseg.datasets.synthetic import generate_phantom

SHAPE = (16, 400, 540)


def work(seconds=0.5):
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def finish(window, seconds=600):
    end = time.monotonic() + seconds
    while window.tasks.busy:
        assert time.monotonic() < end, "it takes too long"
        work(0.05)


def main(output):
    import napari  # here, so that whoever collects tests needs none

    from mitoseg.viewers.napari_plugin.widget import Segmenter

    image_zyx, _, true_zyx = generate_phantom(SHAPE, 3)
    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1500, 950)
    viewer.add_image(image_zyx, name="phantom", scale=(5, 5, 5), units=("nm",) * 3)
    viewer.canvas.overlays.scale_bar.visible = True
    window = Segmenter(viewer)
    viewer.window.add_dock_widget(window, name="Segment mitochondria", area="right")
    window.predicting.greys.setCurrentText("matched to training")
    window.predicting.predict()
    finish(window)
    layers = [(one.name, type(one).__name__, float(one.data.max())) for one in viewer.layers]
    for one in list(viewer.layers)[1:]:  # the model was not trained on phantoms: the picture shows the truth
        viewer.layers.remove(one)
    layer = viewer.add_labels(true_zyx, name="phantom instances", opacity=0.5, scale=(5, 5, 5), units=("nm",) * 3)
    window.tabs.setCurrentWidget(window.instances)
    window.instances.measure()
    finish(window)
    table = window.instances.table
    first = table.table["instance"].tolist()[:2]
    window.instances.ids.setText(", ".join(map(str, first)))
    window.instances.merge()
    finish(window)
    merged = len(np.unique(layer.data)) - 1
    window.instances.undo()
    finish(window)
    table.selectRow(int(table.table["voxels"].argmax()))
    viewer.dims.set_current_step(0, SHAPE[0] // 2)
    viewer.reset_view()
    work()
    picture = Image.fromarray(viewer.screenshot(canvas_only=False)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    rows = len(table.table)
    viewer.close()
    print(json.dumps({"layers": layers, "instances": rows, "merged": merged}))


if __name__ == "__main__":
    main(*sys.argv[1:])
