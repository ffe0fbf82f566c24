"""The HParams table, read back from TensorBoard's events."""

from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mitoseg.workflows.train import hyper_parameters, write_hparams


def test_what_sets_a_run_apart():
    cfg = OmegaConf.create(
        {
            "seed": 2, "epochs": 3, "patience": None, "data": {"batch_size": 10, "box": [1, 2]}, "resume": "x",
            "optimizer": {"_target_": "a.b", "lr": 0.1},
        }
    )  # fmt: skip
    words = ["data.box=[1,2]", "resume=x", "patience=null", "network=patch_cnn"]
    assert hyper_parameters(cfg, {"network": "patch_cnn", "experiment": None}, words) == {
        "network": "patch_cnn", "optimizer.lr": 0.1, "seed": 2, "epochs": 3, "data.batch_size": 10,
        "data.box": "[1, 2]",
    }  # fmt: skip


def test_tensorboard_reads_the_table(tmp_path):
    write_hparams(tmp_path, {"network": "patch_cnn", "optimizer.lr": 0.1}, {"validation/jaccard_foreground": 0.8})
    events = EventAccumulator(str(tmp_path)).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["network"].string_value == "patch_cnn"
    assert session.hparams["optimizer.lr"].number_value == 0.1
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["validation/jaccard_foreground"]
    (score,) = events.Scalars("validation/jaccard_foreground")
    assert round(score.value, 6) == 0.8
