"""The tab in which a model learns what is painted: `mitoseg.workflows.finetune` beside napari's brush."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils.colormaps import DirectLabelColormap
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QFileDialog, QLabel, QLineEdit, QListWidget, QVBoxLayout, QWidget

from mitoseg.datasets.painted import open_painted
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import clock
from mitoseg.storage import atomic_output, check_output
from mitoseg.viewers.napari_plugin.fields import ModelChoice, beside, button, form
from mitoseg.viewers.napari_plugin.jobs import Notice, Progress, showing_mistakes
from mitoseg.viewers.napari_plugin.layers import (
    KEY,
    Layer,
    is_probability,
    layer_volume,
    probability_style,
    same_place,
)
from mitoseg.viewers.napari_plugin.painting import BACKGROUND, MITOCHONDRION, Paint, painted_path
from mitoseg.volumes import ArrayVolume
from mitoseg.workflows import finetune
from mitoseg.workflows.options import FinetuneOptions

if TYPE_CHECKING:
    from mitoseg.viewers.napari_plugin.widget import Segmenter

SAVE_MS = 1000  # after the last change
FIELD = 1024  # side (y, x) in voxels of what is previewed of a slice
PREVIEW_SECONDS = 5.0
COLOURS = {MITOCHONDRION: "orange", BACKGROUND: "deepskyblue"}
HINT = "Brush: 1 mitochondrion (orange), 2 background (blue), 0 unknown. In a reviewed slice all else is background."


class TeachPanel(QWidget):
    """Slices are painted and reviewed, a model learns them, and what to paint next is shown."""

    def __init__(self, main: Segmenter) -> None:
        super().__init__()
        self.main, self.viewer, tasks = main, main.viewer, main.tasks
        self.folder, self.name = QLineEdit(), QLineEdit()
        self.folder.setToolTip("Where the model's folder is made, with its score and pictures of what to paint next")
        self.name.setToolTip("The model's folder; the Predict tab lists it, and checkpoint= takes its best.ckpt")
        self.model = ModelChoice("The model that learns; auto: the bundled one that suits the image")
        self.slices = QListWidget()
        self.slices.setToolTip("Painted and reviewed slices of the image; click one to go there")
        self.slices.setMinimumHeight(60)
        self.slices.itemClicked.connect(self._go)
        self.score = Notice("The score, and what to paint next, will be shown here.")
        self._advice: tuple[Layer, Any, int] | None = None
        self._box, self._preview = Box((0, 0, 0), (0, 0, 0)), None
        self._previewed: tuple[Layer, Layer] | None = None
        self._saving = QTimer(self)
        self._saving.setSingleShot(True)
        self._saving.timeout.connect(self.save)
        QApplication.instance().aboutToQuit.connect(self.save)
        tasks.clock.timeout.connect(self._look)
        start = "A layer to paint on, or the one that was painted before; it saves itself beside the image"
        copy = "Start from the prediction: its mitochondria in this slice are painted, where nothing is painted yet"
        reviewed = "This slice is complete: what is not painted is background. Once more: it is not. The key r does it"
        browse = button("…", "Choose the folder", self._browse)
        train = "Learn what is painted, in the background: some minutes. The score is of voxels that were left out"
        hint = Notice(HINT)
        layout = QVBoxLayout(self)
        layout.addLayout(
            beside(
                button("Paint", start, self.start),
                button("Copy prediction", copy, self.copy_prediction),
                button("Reviewed (r)", reviewed, self.review),
            )
        )
        layout.addWidget(hint)
        layout.addWidget(self.slices, 1)
        layout.addLayout(
            form(("Start from", self.model), ("Save as", self.name), (QLabel("Folder"), beside(self.folder, browse)))
        )
        following = "Go to the slice, or field, from which the model would learn most"
        layout.addLayout(
            beside(button("Train", train, self.train, tasks), button("Next", following, self.show_next, tasks))
        )
        layout.addWidget(self.score, 1)

    @property
    def layer(self) -> Layer | None:
        """The painted layer of the image that is chosen."""
        image = self.main.image.layer
        return (
            next((one for one in self.viewer.layers if one.metadata.get("paints") is image), None) if image else None
        )

    def take(self, *_: object) -> None:
        """Fill in what depends on the chosen image, and find what was painted on it before."""
        image = self.main.image.layer
        self.slices.clear()
        if image is None:
            return
        path = painted_path(image)
        self.folder.setText(str(path.parent))
        for checkpoint in sorted(path.parent.glob("*/checkpoints/best.ckpt")):
            self.main.add_model(checkpoint)
        self._name(path.name.removesuffix("_painted.zarr"))
        if self.isVisible() and path.exists() and self.layer is None:
            self.start()
        self._list()

    def _name(self, stem: str) -> None:
        """Propose a name that is free."""
        names = (f"{stem}_model{'' if n == 1 else n}" for n in range(1, 1000))
        self.name.setText(next(name for name in names if not (Path(self.folder.text()) / name).exists()))

    def showEvent(self, event: Any) -> None:  # noqa: N802, ANN401 (Qt's own)
        """Qt's: what was painted before is shown as soon as the tab is."""
        super().showEvent(event)
        self.take()

    def _browse(self, *_: object) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Where to save the model", self.folder.text()):
            self.folder.setText(path)

    @showing_mistakes
    def start(self) -> None:
        """Add the layer to paint on, or choose the one that is there."""
        image, layer = self.main.image.layer, self.layer
        if layer is None:
            paint = Paint(painted_path(image), layer_volume(image).shape, self._saving.start)
            paint.changed = partial(self._saving.start, SAVE_MS)
            colours = DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", **COLOURS})
            more = {"metadata": {KEY: {"kind": "paint"}, "paints": image}, "colormap": colours, "opacity": 0.5}
            layer = self.viewer.add_labels(paint, name=f"{image.name} painted", **more, **same_place(image))
            layer.brush_size = 10
            layer.bind_key("r", lambda _: self.review(), overwrite=True)
        self.viewer.layers.selection.active = layer
        layer.selected_label = MITOCHONDRION
        layer.mode = "paint"
        self._list()

    def _paint(self) -> Paint:
        layer = self.layer
        if layer is None:
            raise UserError("nothing is painted", None, "press “Paint” first")
        paint: Paint = layer.data
        return paint

    @showing_mistakes
    def copy_prediction(self) -> None:
        """Paint what was predicted in the slice in view."""
        paint, z = self._paint(), self._in_view().start[0]
        labels = self.main.topmost(Labels, lambda one: self._fits(one, paint) and one is not self.layer)
        probability = self.main.topmost(Image, lambda one: is_probability(one) and self._fits(one, paint))
        if labels is not None:
            found_yx = np.asarray(labels.data[z]) > 0
        elif probability is not None:
            about = probability.metadata[KEY]
            threshold = about.get("threshold", 0.5) * (about.get("scale") or 1.0)
            found_yx = np.asarray(probability.data[z]) >= threshold
        else:
            raise UserError("there is no prediction of this image", None, "predict first, or paint by hand")
        y, x = np.nonzero(found_yx & (paint[z] == 0))
        if self.layer is not None and len(y):
            values = np.full(len(y), MITOCHONDRION, np.uint8)
            self.layer.data_setitem((np.full_like(y, z), y, x), values)

    @staticmethod
    def _fits(layer: Layer, paint: Paint) -> bool:
        return not layer.multiscale and tuple(layer.data.shape) == tuple(paint.shape)

    @showing_mistakes
    def review(self) -> None:
        """The slice in view is complete, or no longer."""
        self._paint().review(self._in_view().start[0])
        self._list()

    @showing_mistakes
    def save(self) -> None:
        """Save what has changed, of all images; napari calls it when it closes."""
        for layer in self.viewer.layers:
            if isinstance(layer.data, Paint):
                layer.data.save()
        self._list()

    def _list(self) -> None:
        layer = self.layer
        self.slices.clear()
        if layer is not None:
            paint = layer.data
            for z in sorted({*paint.slices, *paint.reviewed}):
                self.slices.addItem(f"slice {z}: {'reviewed' if z in paint.reviewed else 'painted'}")

    def _go(self, item: Any) -> None:  # noqa: ANN401 (an item of the list)
        z = int(item.text().split(":")[0].split()[1])
        box = self._in_view()
        self.main.look_at(self.main.image.layer, (z, *(sum(ends) / 2 for ends in zip(*self._ends(box), strict=True))))

    @staticmethod
    def _ends(box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return box.start[1:], box.stop[1:]

    def _in_view(self) -> Box:
        """The slice of the image in view, or the field of it around the middle of the view."""
        image = self.main.image.layer
        shape, world = layer_volume(image).shape, list(self.viewer.dims.point)
        displayed = self.viewer.dims.displayed
        centre = self.main.camera.center[-len(displayed) :]
        for axis, at in zip(displayed, centre, strict=True):
            world[axis] = at
        at = [round(float(n)) for n in image.world_to_data(world[-3:])]
        sides = [min(side, n) for side, n in zip((1, FIELD, FIELD), shape, strict=True)]
        start = [max(0, min(c - side // 2, n - side)) for c, side, n in zip(at, sides, shape, strict=True)]
        return Box(tuple(start), tuple(a + side for a, side in zip(start, sides, strict=True)))

    @showing_mistakes
    def train(self) -> None:
        """Fine-tune in the background; the model's folder appears when all is done."""
        image, paint, name = self.main.image.layer, self._paint(), self.name.text().strip()
        if not name or Path(name).name != name:
            raise UserError("this is no name for a model", name, "fill in the field “Save as”")
        target, options = Path(self.folder.text()) / name, FinetuneOptions(model=self.model.path, progress=False)
        check_output(target, overwrite=False)
        self.save()
        volume = layer_volume(image, self.main.voxel_size.value)
        meaning = {"reviewed": sorted(paint.reviewed), "foreground": MITOCHONDRION, "background": BACKGROUND}
        slices, label = paint.slices, ArrayVolume(paint, None, str(paint.path))
        self._box, self._preview = self._in_view(), None

        def job(progress: Progress) -> finetune.Finetuned:
            progress(0.0, "reading what is painted")
            regions = open_painted([volume], [label], slices=slices, **meaning)
            progress(0.0, "preparing")
            free = time.monotonic()  # when the next preview may begin, so that they take little of the time

            def report(done: finetune.Progress) -> None:
                nonlocal free
                progress(done.done, f"{done.stage}, {clock(done.left)} left")
                began = time.monotonic()
                if done.preview is not None and began >= free:
                    self._preview = (image, self._box, done.preview(volume, self._box))
                    free = time.monotonic() + max(PREVIEW_SECONDS, 5 * (time.monotonic() - began))

            with atomic_output(target) as temporary:
                found = finetune.finetune(options, temporary, report, regions)
            return replace(found, checkpoint=target / found.checkpoint.relative_to(temporary))

        self.main.tasks.start(job, partial(self._done, image))

    def _look(self) -> None:
        """While it learns: note what is in view, and show the latest preview."""
        if self.main.image.layer is None:
            return
        self._box = self._in_view()
        if self._preview is None:
            return
        (image, box, found_zyx), self._preview = self._preview, None
        place = {**same_place(image), "translate": image.data_to_world(box.start)}
        if self._previewed is not None and self._previewed[0] is image and self._previewed[1] in self.viewer.layers:
            layer = self._previewed[1]
            layer.data, layer.translate = found_zyx, place["translate"]
        elif image in self.viewer.layers:
            about = {KEY: {"kind": "preview"}}
            options = {**place, **probability_style(), "metadata": about, "name": f"{image.name} while learning"}
            active = self.viewer.layers.selection.active
            self._previewed = image, self.viewer.add_image(found_zyx, **options)
            self.viewer.layers.selection.active = active  # so that the brush goes on

    def _done(self, image: Layer, found: finetune.Finetuned) -> str:
        self.main.add_model(found.checkpoint)
        self.score.setText(f"{found}\nsaved as {found.checkpoint}")
        self._advice = (image, found.advice, 0)
        self._name(self.name.text())
        return finetune.ENDS[found.kept]

    @showing_mistakes
    def show_next(self) -> None:
        """Go to the next of the suggestions, and say why."""
        if self._advice is None or self._advice[0] not in self.viewer.layers:
            raise UserError("nothing is suggested yet", None, "paint some slices, and train")
        image, advice, turn = self._advice
        if not advice.suggestions:
            raise UserError("nothing is left to paint", None, "all slices are painted")
        one = advice.suggestions[turn % len(advice.suggestions)]
        self._advice = (image, advice, turn + 1)
        self.main.image.choose(image)
        self.main.look_at(image, [(a + b - 1) / 2 for a, b in zip(one.box.start, one.box.stop, strict=True)])
        whole = one.box.shape[1:] == one.image.shape[1:]
        where = f"Slice {one.box.start[0]}" if whole else f"The field {one.box}"
        why = (
            f"models that learnt different parts of what is painted disagree most ({one.disagreement:.3f} on average)"
        )
        self.score.setText(
            f"{where}: here, far from what is painted, {why}; "
            f"about {100 * one.share:.0f} % is mitochondria.\n{str(advice).splitlines()[0]}"
        )
