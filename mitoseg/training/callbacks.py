"""Callbacks: pictures in TensorBoard, guards against losses and gradients that are wrong, and progress."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from scipy.special import expit
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mitoseg.errors import UserError
from mitoseg.metrics.histogram import CENTRES
from mitoseg.metrics.torch_metrics import as_counts, block_scores
from mitoseg.progress import clock, lines
from mitoseg.training.checkpointing import SCORE
from mitoseg.training.module import SegmentationModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROBABILITIES = np.linspace(0, 1, 51)  # bounds of the bars in the histograms of probabilities


class SlicePictures(Callback):
    """Pictures of a few validation slices and the precision-recall curve, into TensorBoard after each validation.

    ``draw`` makes a figure of ``image_yx``, ``truth_yx`` and ``result_yx`` (bool); the slices are evenly spaced.
    """

    def __init__(self, draw: Callable[..., Figure], count: int = 3) -> None:
        self.draw, self.count = draw, count
        self._kept: list[tuple[str, list[npt.NDArray[np.float32]]]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the slice if it is one of the chosen; of a slab the middle one."""
        total = int(trainer.num_val_batches[0])
        chosen = {round((i + 0.5) * total / self.count - 0.5) for i in range(self.count)}
        if trainer.is_global_zero and batch_idx in chosen and isinstance(outputs, Tensor):
            if "image_cyx" in batch:
                image_cyx = batch["image_cyx"]
                found = image_cyx[len(image_cyx) // 2], batch["label_yx"], outputs
            else:
                z = len(outputs) // 2
                found = batch["image_czyx"][0, int(batch["first"]) + z], batch["label_zyx"][z], outputs[z]
            name = f"region {int(batch['region'])}, z {int(batch['z'])}"
            self._kept.append((name, [tensor.float().cpu().numpy() for tensor in found]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept, with the calibration and threshold of this validation."""
        kept, self._kept = self._kept, []
        board = next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if board is None or not (trainer.is_global_zero and isinstance(pl_module, SegmentationModule)):
            return
        step = trainer.global_step
        for name, (image_yx, truth_yx, log_odds_yx) in kept:
            probability_yx = expit(pl_module.calibration.apply(log_odds_yx))
            figure = self.draw(image_yx, truth_yx, probability_yx >= pl_module.threshold, title=name, dpi=80)
            board.add_figure(f"validation/{name}", figure, step, close=False)
            board.add_image(f"validation probability/{name}", probability_yx, step, dataformats="HW")
        c = pl_module.curve
        picked = np.linspace(0, len(c.tp) - 1, 127).astype(int)
        tp, fp, fn, tn = (column[picked].astype(float) for column in (c.tp, c.fp, c.fn, c.tn))
        precision, recall = tp / np.maximum(tp + fp, 1), tp / np.maximum(tp + fn, 1)
        board.add_pr_curve_raw("validation/precision_recall", tp, fp, tn, fn, precision, recall, step, len(picked))
        probability = expit(pl_module.calibration.apply(CENTRES))
        for name, count in zip(("background", "mitochondria"), pl_module.histogram, strict=True):
            bars, _ = np.histogram(probability, PROBABILITIES, weights=count)
            moments = 0.0, 1.0, int(count.sum()), float(count @ probability), float(count @ probability**2)
            tag, bounds = f"validation/probability of {name}", PROBABILITIES[1:].tolist()
            board.add_histogram_raw(tag, *moments, bounds, bars.tolist(), step)


class FiniteLoss(Callback):
    """Ends training at the first loss that is NaN or infinite.

    On a CPU each loss is checked before its gradients are computed. On a GPU that would make the host wait at every
    step: there the device notes the first bad step, which is read every ``log_every_n_steps`` steps and before
    anything is scored or saved.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int]] = []
        self._bad: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check a loss, or have the device check it."""
        place = trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if loss.device.type != "cpu":
            self.note(loss, place)
        elif not torch.isfinite(loss):
            raise _not_finite(trainer, *place)

    def note(self, loss: Tensor, place: tuple[int, int, int]) -> None:
        """Have the device remember the first loss that is not finite; ``place``: step, epoch and batch."""
        number = len(self._seen)
        self._seen.append(place)
        if self._bad is None:
            self._bad = torch.full((), -1, device=loss.device)
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(loss.detach()), number, self._bad)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """Read the device's note from time to time."""
        if len(self._seen) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._ask(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not score what a bad loss has left of the weights."""
        self._ask(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never save what a bad loss has left of the weights."""
        self._ask(trainer)

    def _ask(self, trainer: Trainer) -> None:
        number = -1 if self._bad is None else int(self._bad)
        seen, self._seen, self._bad = self._seen, [], None
        if number >= 0:
            raise _not_finite(trainer, *seen[number])


def _not_finite(trainer: Trainer, step: int, epoch: int, batch: int) -> UserError:
    """The error of a batch: its place in the run, the places of its first three blocks, and what to do."""
    what = f"the loss is not finite at step {step}, epoch {epoch}, batch {batch}"
    data = getattr(trainer, "datamodule", None)
    if data is not None and hasattr(data, "batch_positions"):  # region, z, y, x of each block
        position_b4 = data.batch_positions(epoch, batch)
        shown = ", ".join(f"{r}:[{z},{y},{x}]" for r, z, y, x in position_b4[:3].tolist())
        more = f" and {len(position_b4) - 3} more" if len(position_b4) > 3 else ""
        what = f"{what}, whose blocks are at region:[z,y,x] {shown}{more}"
    remedy = "lower optimizer.lr, set trainer.gradient_clip_val=1, use trainer.precision=32-true, or check the data"
    return UserError(what, None, f"{remedy}; last.ckpt is from before this step")


class Throughput(Callback):
    """Logs loss, learning rate and speed every ``log_every_n_steps`` steps, and at the other steps costs nothing.

    The loss is that of one batch (of the first device's part), the speed that of all devices, without validation.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=2)
        self._blocks = 0

    @property
    def speed(self) -> float | None:
        """Blocks a second between the last two logs; None before there are two."""
        if len(self._marks) < 2:
            return None
        (earlier, before), (later, after) = self._marks
        return (after - before) / (later - earlier)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """Count the blocks of this rank; the others have as many, give or take one."""
        self._blocks += len(batch["label"]) * trainer.world_size
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._marks and (batch_idx + 1) % every:
            return
        self._marks.append((time.perf_counter(), self._blocks))
        values: dict[str, float] = {"epoch": trainer.current_epoch}
        if isinstance(pl_module, SegmentationModule) and pl_module.last_loss is not None:
            values["train/loss"] = float(pl_module.last_loss)
        if trainer.optimizers:
            values["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.speed is not None:
            values["train/blocks_per_second"] = self.speed
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # counted as Lightning counts

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew."""
        self._marks.clear()


class _Clock(ProgressBar):
    """Estimates the time that is left from the speed since training started."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._clock, self._first_step = time.monotonic(), trainer.global_step

    def time_left(self, trainer: Trainer) -> str | None:
        """The time until the last step, such as ``0:12:30``; None before the first step."""
        done = trainer.global_step - self._first_step
        if done < 1 or (total := trainer.estimated_stepping_batches) == float("inf"):
            return None
        return clock((time.monotonic() - self._clock) / done * (total - trainer.global_step))


class Progress(_Clock, RichProgressBar):
    """Lightning's rich progress bar with the run's speed, running score and time left.

    It is refreshed once a second: reading the scores makes the host wait for a GPU.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=False)
        self.throughput = throughput
        self._next = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ANN401
        """Refresh the bar, if it is time to."""
        now = time.monotonic()
        if now >= self._next or trainer.is_last_batch:
            self._next = now + 1
            super().on_train_batch_end(trainer, pl_module, *rest)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The scores, ``loss``, ``JAC`` of the epoch so far, ``blocks/s`` and the time ``left``."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if isinstance(pl_module, SegmentationModule) and trainer.training:
            counts = as_counts(pl_module.block_counts.counts)
            if pl_module.last_loss is not None:
                metrics["loss"] = float(pl_module.last_loss)
            if counts.voxels:
                metrics["JAC"] = block_scores(counts)["block_jaccard"]
        if self.throughput.speed is not None:
            metrics["blocks/s"] = f"{self.throughput.speed:,.0f}"
        if (left := self.time_left(trainer)) is not None:
            metrics["left"] = left
        return metrics


class ProgressLines(_Clock):
    """Logs step, loss, validation JAC and time left every half minute, where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = ExitStack()
        self._score: float | None = None

    def disable(self) -> None:
        """Nothing to do: further ranks start no lines."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the lines."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._lines.enter_context(lines(partial(self.line, trainer, pl_module)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the score: the lines' thread must not read a metric that is being computed."""
        if (score := trainer.callback_metrics.get(SCORE)) is not None:
            self._score = float(score)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the lines."""
        self._lines.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the lines."""
        self._lines.close()

    def line(self, trainer: Trainer, module: LightningModule) -> str:
        """Such as ``step 1200, epoch 3 of 12, loss 0.1234, validation JAC 0.812, 0:12:30 left``."""
        parts = [f"step {trainer.global_step}", f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"]
        if isinstance(module, SegmentationModule) and module.last_loss is not None:
            parts.append(f"loss {float(module.last_loss):.4f}")
        if self._score is not None:
            parts.append(f"validation JAC {self._score:.3f}")
        if (left := self.time_left(trainer)) is not None:
            parts.append(f"{left} left")
        if trainer.validating:
            parts.append("validating")
        return ", ".join(parts)


class ShallowConvolutions(Callback):
    """Ends a run on a CPU in bfloat16 at its first step, if a 3D convolution sees an image two slices deep.

    With torch 2.13 (oneDNN, AVX-512 bfloat16) the weights' gradient of a 3D convolution with a kernel of 3 and a
    stride of 1 along z is then wrong, and often NaN; in float32, and at any other depth, it is right. A U-Net comes to
    such an image at its coarsest level.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the inputs of the convolutions."""
        if trainer.strategy.root_device.type != "cpu" or "bf16" not in str(trainer.precision):
            return
        for layer in pl_module.modules():
            if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1 and layer.stride[0] == 1:
                self._handles.append(layer.register_forward_pre_hook(self._check))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """Stop checking: all tiles have one size."""
        while self._handles:
            self._handles.pop().remove()

    @staticmethod
    def _check(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and inputs[0].shape[2] == 2:
            what = "gradients in bfloat16 on a CPU are wrong if the network's coarsest level is two slices deep"
            remedy = "give a deeper data.tile=[z,y,x], or trainer.precision=32-true"
            raise UserError(what, tuple(inputs[0].shape[2:]), remedy)
