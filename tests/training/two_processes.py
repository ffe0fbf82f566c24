"""Trains on two real processes and writes down what each of them saw: ``python two_processes.py FOLDER``."""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from disc_training import datamodule, module, trainer

from mitoseg.training import sgd_paper

BLOCKS, PARTS = 210, 2  # 40 to a step, five steps and ten blocks; gradients accumulated over two parts


class Recorder(pl.Callback):
    """Notes the places of blocks, the validation slices, and what was counted, before and after training."""

    def __init__(self, folder):
        self.folder = folder
        self.batches, self.slices, self.histograms = [], [], []

    def on_train_batch_start(self, run, module, batch, batch_idx):
        self.batches.append(batch["position_b4"].tolist())

    def on_validation_batch_start(self, run, module, batch, batch_idx, dataloader_idx=0):
        self.slices.append((int(batch["region"]), int(batch["z"])))

    def on_validation_end(self, run, module):
        self.histograms.append(module.histogram.tolist())

    def on_fit_end(self, run, module):
        told = {
            "rank": run.global_rank,
            "world": run.world_size,
            "steps": run.global_step,
            "batches": self.batches,
            "slices": self.slices,
            "histograms": [[sum(row) for row in h] for h in self.histograms],
            "first_histogram": self.histograms[0],
            "metrics": {name: float(value) for name, value in run.callback_metrics.items()},
            "weights": torch.cat([p.detach().flatten() for p in module.parameters()]).tolist(),
        }
        (self.folder / f"rank{run.global_rank}_of_{run.world_size}.json").write_text(
            json.dumps(told), encoding="utf-8"
        )


def train(folder, **options):
    """One epoch, with a validation of the untrained network before it."""
    given = {"max_epochs": 1, "num_sanity_val_steps": -1, "enable_checkpointing": False, **options}
    run = trainer(folder, callbacks=[Recorder(folder)], **given)
    run.fit(module(lr=0.5, optimizer=sgd_paper), datamodule=datamodule(epoch_blocks=BLOCKS))


if __name__ == "__main__":
    train(Path(sys.argv[1]), devices=2, strategy="ddp_fork", accumulate_grad_batches=PARTS)
