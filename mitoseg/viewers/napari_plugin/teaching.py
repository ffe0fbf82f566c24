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
from qtpy.QtWidgets import QApplication, QFileDialog, QLineEdit, QListWidget, QVBoxLayout, QWidget

from mitoseg.datasets.painted import open_painted
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import clock
from mitoseg.storage import atomic_output, check_output
from mitoseg.viewers.napari_plugin.fields import ModelChoice, beside, button, form
from mitoseg.viewers.napari_plugin.jobs import Notice, Progress, show_mistake, showing_mistakes
from mitoseg.viewers.napari_plugin.layers import (
    KEY,
    Layer,
    fitting_volume,
    is_probability,
    layer_volume,
    probability_style,
    same_place,
)
from mitoseg.viewers.napari_plugin.painting import Paint, painted_path
from mitoseg.volumes import ArrayVolume
from mitoseg.volumes.base import Array
from mitoseg.workflows.options import FinetuneOptions

if TYPE_CHECKING:
    from mitoseg.workflows import finetune
    from mitoseg.workflows.suggest import Advice

MITOCHONDRION, BACKGROUND = 1, 2
COLOURS = {None: "transparent", 0: "transparent", MITOCHONDRION: "orange", BACKGROUND: "deepskyblue"}
HINT = "Brush: 1 mitochondrion (orange), 2 background (blue), 0 unknown. In reviewed slices all else is background."
SAVE_MS = 1000  # after the last change
FIELD = 1024  # largest side (y, x) in voxels of a preview
PREVIEW_SECONDS = 5.0


def keep(paint: Paint) -> QTimer:
    """Save what is painted soon after each change, and when napari ends; it outlives the panel, as the layer does."""

    def save() -> None:
        try:
            paint.save()
        except UserError as error:
            show_mistake(error)

    application = QApplication.instance()
    timer = QTimer(application)
    timer.setSingleShot(True)
    timer.timeout.connect(save)
    application.aboutToQuit.connect(save)
    paint.changed = partial(timer.start, SAVE_MS)
    return timer


class TeachPanel(QWidget):
    """Slices are painted and reviewed, a model learns them, and what to paint next is shown."""

    def __init__(self, main: Any) -> None:  # noqa: ANN401 (the `Segmenter`, whose module imports this one)
        super().__init__()
        self.main, self.viewer, tasks = main, main.viewer, main.tasks
        self.model = ModelChoice("The model that learns; auto: the bundled one that suits the image")
        self.folder, self.name, self.slices = QLineEdit(), QLineEdit(), QListWidget()
        self.folder.setToolTip("The model's folder is made in it, with the score and pictures of what to paint next")
        self.name.setToolTip("Of the model's folder; the Predict tab lists it, checkpoint= takes its best.ckpt")
        self.slices.setToolTip("Painted and reviewed slices of the image; click one to go there")
        self.slices.setMinimumHeight(50)
        self.slices.itemClicked.connect(self._go)
        self.score, self.reason = Notice("The score will be shown here."), Notice("")
        self._taken: Layer | None = None  # the image whose folder and name are filled in
        self._paints: list[Paint] = []
        self._advice: tuple[Layer, Advice, int] | None = None
        self._learning: Layer | None = None  # the image, while a model learns
        self._box = Box((0, 0, 0), (0, 0, 0))
        self._preview: tuple[Layer, Box, Array] | None = None  # that waits to be shown
        self._shown: tuple[Layer, Layer] | None = None  # an image and the layer of its preview
        tasks.running.connect(self._stopped)
        tasks.clock.timeout.connect(self._look)
        start = "A layer to paint on, with what was painted before; it saves itself beside the image"
        copy = "Start from the prediction: paint its mitochondria in this slice, where nothing is painted yet"
        reviewed = (
            "This slice is complete: what is not painted is background. Again: it is not. The key r does the same"
        )
        learn = "Learn what is painted, in the background, for some minutes; the score is of voxels that were left out"
        following = "Go to the slice, or field, from which the model would learn most"
        layout = QVBoxLayout(self)
        layout.addLayout(
            beside(
                button("Paint", start, self.start),
                button("Copy prediction", copy, self.copy_prediction),
                button("Reviewed (r)", reviewed, self.review),
            )
        )
        layout.addWidget(Notice(HINT))
        layout.addWidget(self.slices, 1)
        folder = beside(self.folder, button("…", "Choose the folder", self._browse))
        layout.addLayout(form(("Start from", self.model), ("Save as", self.name), ("Folder", folder)))
        layout.addLayout(
            beside(button("Train", learn, self.train, tasks), button("Next", following, self.show_next, tasks))
        )
        layout.addWidget(self.reason)
        layout.addWidget(self.score, 1)

    @property
    def layer(self) -> Layer | None:
        """The painted layer of the image that is chosen."""
        painted = (one for one in self.viewer.layers if isinstance(one.data, Paint))
        return next((one for one in painted if one.metadata["paints"] is self.main.image.layer), None)

    def take(self, *_: object) -> None:
        """Fill in what depends on the chosen image, and find what was painted on it before."""
        image = self.main.image.layer
        if image is not None:
            path = painted_path(image)
            if image is not self._taken:
                self.folder.setText(str(path.parent))
                self._propose(path.name.removesuffix("_painted.zarr") + "_model")
                for checkpoint in sorted(path.parent.glob("*/checkpoints/best.ckpt")):
                    self.main.add_model(checkpoint)
            if self.isVisible() and path.exists() and self.layer is None:
                self.start()
        self._taken = image
        self._list()

    def _propose(self, name: str) -> None:
        """Fill in a name that is free."""
        names = [name, *(f"{name} {n}" for n in range(2, 1000))]
        self.name.setText(next((one for one in names if not (Path(self.folder.text()) / one).exists()), ""))

    def showEvent(self, event: Any) -> None:  # noqa: N802, ANN401 (Qt's own)
        """Qt's: what was painted before is shown with the tab."""
        super().showEvent(event)
        self.take()

    def _browse(self, *_: object) -> None:
        if path := QFileDialog.getExistingDirectory(self, "Where to save the model", self.folder.text()):
            self.folder.setText(path)

    @showing_mistakes
    def start(self) -> None:
        """Take the brush on the layer to paint on, which is made if there is none."""
        image, layer = self.main.image.layer, self.layer
        if layer is None:
            shape = layer_volume(image).shape
            assert image is not None
            self.save()
            paint = Paint(painted_path(image), shape)
            self._paints.append(paint)
            keep(paint).timeout.connect(self._list)
            options = {"metadata": {KEY: {"kind": "paint"}, "paints": image}, "opacity": 0.5, **same_place(image)}
            options |= {"name": f"{image.name} painted", "colormap": DirectLabelColormap(color_dict=COLOURS)}
            layer = self.viewer.add_labels(paint, **options)
            layer.bind_key("r", lambda _: self.review(), overwrite=True)
        self.viewer.layers.selection.active = layer
        layer.selected_label, layer.mode = MITOCHONDRION, "paint"
        self._list()

    def _painted(self) -> tuple[Layer, Layer, Paint]:
        """The image, its layer of paint, and that layer's array."""
        if self.layer is None:
            raise UserError("nothing is painted", None, "press “Paint” first")
        return self.main.image.layer, self.layer, self.layer.data

    @showing_mistakes
    def copy_prediction(self) -> None:
        """Paint what was predicted in the slice in view."""
        image, layer, paint = self._painted()
        others = [
            self.main.topmost(Labels, lambda one: not isinstance(one.data, Paint)),
            self.main.topmost(Image, is_probability),
        ]
        found = next((v for one in others if (v := fitting_volume(one, paint.shape)) is not None), None)
        if found is None:
            raise UserError("there is no prediction of this image", None, "predict first, or paint by hand")
        z, about = round(self._middle(image)[0]), found.info.metadata
        least = about.get("threshold", 0.5) * (about.get("scale") or 1.0) if about.get("kind") == "probability" else 1
        plane = Box((z, 0, 0), (z + 1, *paint.shape[1:]))
        y, x = np.nonzero((found.read(plane)[0] >= least) & (paint[z] == 0))
        layer.data_setitem((np.full_like(y, z), y, x), np.full(len(y), MITOCHONDRION, np.uint8))

    @showing_mistakes
    def review(self) -> None:
        """The slice in view is complete, or no longer."""
        image, _, paint = self._painted()
        paint.review(self._in_view(image).start[0])
        self._list()

    @showing_mistakes
    def save(self) -> None:
        """Save what has changed, of all images."""
        for paint in self._paints:
            paint.save()

    def _list(self) -> None:
        self.slices.clear()
        if self.layer is not None:
            painted, reviewed = self.layer.data.slices, self.layer.data.reviewed
            for z in sorted({*painted, *reviewed}):
                self.slices.addItem(f"slice {z}: {'reviewed' if z in reviewed else 'painted'}")

    def _go(self, item: Any) -> None:  # noqa: ANN401 (a row of the list)
        image = self.main.image.layer
        z = int(item.text().removeprefix("slice ").split(":")[0])
        self.main.look_at(image, (z, *self._middle(image)[1:]))

    def _middle(self, image: Layer) -> list[float]:
        """The voxel (z, y, x) of an image in the middle of the view."""
        world, displayed = list(self.viewer.dims.point), self.viewer.dims.displayed
        for axis, at in zip(displayed, self.main.camera.center[-len(displayed) :], strict=True):
            world[axis] = at
        return [float(n) for n in image.world_to_data(world[-3:])]

    def _in_view(self, image: Layer) -> Box:
        """The slice of an image in view, or the field of it around the middle of the view."""
        start, stop = [], []
        for at, n, most in zip(self._middle(image), layer_volume(image).shape, (1, FIELD, FIELD), strict=True):
            side = min(n, most)
            start.append(max(0, min(round(at) - side // 2, n - side)))
            stop.append(start[-1] + side)
        return Box(tuple(start), tuple(stop))

    @showing_mistakes
    def train(self) -> None:
        """Fine-tune in the background; the model's folder appears when all is done."""
        (image, _, paint), name = self._painted(), self.name.text().strip()
        if not name or Path(name).name != name:
            raise UserError("this is no name for a model", name, "fill in the field “Save as”")
        target, options = Path(self.folder.text()) / name, FinetuneOptions(model=self.model.path, progress=False)
        check_output(target, overwrite=False)
        self.save()
        volume = layer_volume(image, self.main.voxel_size.value)
        slices, reviewed, label = paint.slices, sorted(paint.reviewed), ArrayVolume(paint, None, str(paint.path))

        def job(progress: Progress) -> finetune.Finetuned:
            progress(0.0, "reading what is painted")
            from mitoseg.workflows.finetune import finetune as tune  # takes seconds to load

            meaning: dict[str, Any] = {"foreground": MITOCHONDRION, "background": BACKGROUND}
            regions = open_painted([volume], [label], reviewed=reviewed, slices=slices, **meaning)
            free = 0.0  # when the next preview may begin, so that they take little of the time

            def report(done: finetune.Progress) -> None:
                nonlocal free
                progress(done.done, f"{done.stage}, {clock(done.left)} left")
                began = time.monotonic()
                if done.preview is not None and began >= free:
                    box = self._box
                    self._preview = (image, box, done.preview(volume, box))
                    free = time.monotonic() + max(PREVIEW_SECONDS, 5 * (time.monotonic() - began))

            progress(0.0, "preparing")
            with atomic_output(target) as temporary:
                found = tune(options, temporary, report, regions)
            return replace(found, checkpoint=target / found.checkpoint.relative_to(temporary))

        self._box, self._preview = self._in_view(image), None
        self.main.tasks.start(job, partial(self._done, image))
        self._learning = image

    def _stopped(self, running: bool) -> None:
        if not running:
            self._learning = None

    def _look(self) -> None:
        """While a model learns: note what is in view, and show the latest preview."""
        if self._learning is None:
            return
        self._box = self._in_view(self._learning)
        if self._preview is None:
            return
        (image, box, found_zyx), self._preview = self._preview, None
        translate = image.data_to_world(box.start)
        if self._shown is not None and self._shown[0] is image and self._shown[1] in self.viewer.layers:
            self._shown[1].data, self._shown[1].translate = found_zyx, translate
            return
        options = {**same_place(image), "translate": translate, **probability_style()}
        options |= {"metadata": {KEY: {"kind": "preview"}}, "name": f"{image.name} while learning"}
        active = self.viewer.layers.selection.active
        self._shown = image, self.viewer.add_image(found_zyx, **options)
        self.viewer.layers.selection.active = active  # so that the brush goes on

    def _done(self, image: Layer, found: finetune.Finetuned) -> str:
        self.main.add_model(found.checkpoint)
        self.score.setText(f"{found}\nsaved as {found.checkpoint}")
        self.reason.setText("")
        self._advice = (image, found.advice, 0)
        self._propose(self.name.text())
        return f"{found.checkpoint.parents[1].name} has learnt what is painted; its score is in the tab “Teach”"

    @showing_mistakes
    def show_next(self) -> None:
        """Go to the next of the suggestions, and say why."""
        if self._advice is None or self._advice[0] not in self.viewer.layers:
            raise UserError("nothing is suggested yet", None, "paint some slices, and train")
        image, advice, turn = self._advice
        if not advice.suggestions:
            raise UserError("nothing is left to paint", None, "predict with the model")
        one = advice.suggestions[turn % len(advice.suggestions)]
        self._advice = (image, advice, turn + 1)
        self.main.image.choose(image)
        self.main.look_at(image, [(a + b - 1) / 2 for a, b in zip(one.box.start, one.box.stop, strict=True)])
        where = f"Slice {one.box.start[0]}" if one.box.shape[1:] == one.image.shape[1:] else f"The field {one.box}"
        self.reason.setText(
            f"{where}: models that learnt different parts of what is painted disagree most there, by "
            f"{one.disagreement:.3f} on average, far from what is painted; about {100 * one.share:.0f} % is "
            f"mitochondria. As a whole, {str(advice).splitlines()[0].partition(';')[0]}."
        )
