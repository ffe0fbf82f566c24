"""Every network trains alone, by its name."""

import pytest
from tiny_training import TINY, command

from mitoseg.cli.launch import default_config_dir

NAMES = sorted(path.stem for path in (default_config_dir() / "network").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"network={name}", "trainer.max_steps=1", "test=false", "figures=false", "save_overlays=0"]
    words += ["data.train_shape=[64,96,128]", "data.epoch_tiles=4", "data.validation_stride=8"]
    words += ["trainer.val_check_interval=1", "callbacks=monitor", "hydra.run.dir=run"]
    if name == "patch_cnn" or name == "context_cnn":
        words += ["data.batch_size=8"]
    else:
        tile = {"unet3d": "[32,64,64]", "residual_unet3d": "[32,64,64]", "unet3d_anisotropic": "[8,64,64]"}
        words += [f"data.tile={tile[name]}"] if name in tile else []
        words += ["data.tile=[1,64,64]"] if "3d" not in name and name not in ("segresnet",) else []
        words += ["data.batch_size=1"]
    assert command(monkeypatch, "train", *words) in (None, 0)
    assert (tmp_path / "run" / "metrics.json").is_file()
