"""``finetune``: a tissue learnt from a few painted slices, scored on what was left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_checkpoints import save_checkpoint, write_volume
from tiny_training import command

import mitoseg
from mitoseg.datasets.painted import Painted, open_painted
from mitoseg.datasets.synthetic import generate_phantom, get_preset
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.metrics import Counts
from mitoseg.networks.checkpoint import KEY, load_model
from mitoseg.networks.unets import UNet
from mitoseg.training.module import combine
from mitoseg.volumes import ArrayVolume
from mitoseg.workflows import finetune as workflow

SIZE = (30.0, 6.0, 6.0)
FEW = ["steps=2", "voxel_size=[30,6,6]", "progress=false", "accelerator=cpu"]


@pytest.fixture(autouse=True)
def one_thread(few_threads):
    """Threads wait for each other where other work shares the cores, and these arrays are tiny."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tissue():
    """Image and mask (z, y, x)."""
    image_zyx, mask_zyx, _ = generate_phantom((8, 96, 96), 3, get_preset("sbem"))
    return image_zyx, mask_zyx


@pytest.fixture
def place(tissue, tmp_path, monkeypatch):
    """A folder with an image, two painted slices, and a small start model on three neighbouring slices."""
    monkeypatch.chdir(tmp_path)
    image_zyx, mask_zyx = tissue
    write_volume("my.tif", image_zyx, SIZE)
    painted_zyx = np.zeros_like(mask_zyx)
    painted_zyx[[1, 6]] = np.where(mask_zyx[[1, 6]], 1, 2)
    write_volume("painted.tif", painted_zyx, SIZE)
    arguments = {"in_channels": 3, "filters": [4, 8, 8], "strides": [2, 2]}
    torch.manual_seed(0)
    more = {"version": mitoseg.__version__, "method": "auto", "precision": {}, "grey_quantiles": None}
    more |= {"normalization": {"mean": 128.0, "std": 40.0}, "channels": "adjacent"}
    save_checkpoint("start.ckpt", UNet(**arguments), arguments=arguments, draw=False, **more)
    return tmp_path


def test_the_command_leaves_a_checkpoint_and_an_honest_score(place, monkeypatch, capsys):
    words = ["image=my.tif", "labels=painted.tif", "output=mine", "model=start.ckpt", *FEW]
    assert not command(monkeypatch, "finetune", *words)
    said = capsys.readouterr().out
    assert "start model" in said
    assert "tuned model" in said
    assert said.splitlines()[-1] == "mine"
    found = json.loads(Path("mine/metrics.json").read_text())
    assert found["kept"] in {"start", "threshold", "tuned"}
    assert found["parts"] == 3
    low, high = found["validation"]["interval"]["jaccard_foreground"]
    assert low <= found["validation"]["jaccard_foreground"] <= high
    model = load_model("mine/checkpoints/best.ckpt")
    assert model.channels == ("single" if found["kept"] == "tuned" else "adjacent")
    tuned = model if found["kept"] == "tuned" else load_model("mine/checkpoints/tuned.ckpt")
    assert tuned.voxel_size == SIZE
    assert tuned.threshold == found["validation"]["threshold"]
    assert {"config.yaml", "provenance.json", "metrics.json", "csv", "tensorboard"} <= {
        path.name for path in Path("mine").iterdir()
    }
    words = ["checkpoint=mine/checkpoints/best.ckpt", "input=my.tif", "output=p.tif", "expect=false", FEW[-1]]
    assert not command(monkeypatch, "predict", *words)


def test_what_is_cancelled_leaves_no_model(place):
    given = workflow.FinetuneOptions(image="my.tif", labels="painted.tif", model="start.ckpt", steps=3)
    seen = []

    def cancel(progress):
        seen.append(progress)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        workflow.finetune(given, Path("mine"), cancel)
    assert list(Path("mine/checkpoints").glob("best*")) == []
    assert [progress.stage for progress in seen] == ["training"] * 2
    assert 0 < seen[0].done < seen[1].done < 1


def test_python_gives_the_model_and_its_score_and_previews_come_while_it_learns(place, tissue):
    image_zyx, mask_zyx = tissue
    shapes = []

    def look(progress):
        if progress.preview is not None and not shapes:
            whole = ArrayVolume(image_zyx, SIZE, "another")
            found = progress.preview(whole, Box((2, 8, 8), (3, 40, 72)))
            shapes.append((found.shape, float(found.min()) >= 0, float(found.max()) <= 1))

    options = {"steps": 2, "accelerator": "cpu", "model": "start.ckpt"}
    painted_zyx = np.zeros_like(mask_zyx)
    painted_zyx[[1, 5]] = mask_zyx[[1, 5]]
    model, found = mitoseg.finetune(image_zyx, painted_zyx, SIZE, progress=look, **options)
    assert shapes == [((1, 32, 64), True, True)]
    assert found.regions == 2
    assert found.tuned.low <= found.tuned.value <= found.tuned.high
    assert model.segment(image_zyx, SIZE).shape == image_zyx.shape
    assert {s.box.start[0] for s in found.advice.suggestions} & {1, 5} == set()
    assert len(found.advice.suggestions) == 3
    assert "another slice" in str(found)


def test_what_is_not_scored_is_no_best_checkpoint(place):
    given = workflow.FinetuneOptions(image="my.tif", labels="painted.tif", model="start.ckpt", steps=1)
    seen = []

    def look(progress):
        if progress.stage.startswith("scoring"):  # a kill would leave these
            seen.append({path.name for path in Path("mine/checkpoints").iterdir()})
            with pytest.raises(UserError, match="another fine-tuning is running"):
                workflow.finetune(given, Path("mine"))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        workflow.finetune(given, Path("mine"), look)
    assert seen == [{workflow.UNSCORED, "last.ckpt"}]
    assert not Path("mine/checkpoints", workflow.UNSCORED).exists()


def test_a_model_that_is_there_stays(place, monkeypatch, capsys):
    Path("mine/checkpoints").mkdir(parents=True)
    Path("mine/checkpoints/best.ckpt").write_text("an earlier one")
    words = ["image=my.tif", "labels=painted.tif", "hydra.run.dir=mine", "model=start.ckpt", *FEW]
    assert command(monkeypatch, "finetune", *words) == 1
    assert "holds a model already" in capsys.readouterr().err
    assert Path("mine/checkpoints/best.ckpt").read_text() == "an earlier one"


@pytest.mark.parametrize(
    ("change", "arguments", "line"),
    [
        ({"channels": "${oc.env:HOME}"}, {}, "makes channels in an unknown way"),
        ({"version": None}, {}, "the loss is not finite"),  # it gets as far as that
        ({"channels": "single"}, {"in_channels": 1, "spatial_dims": 3}, "a 3D network cannot be fine-tuned"),
        (None, {}, "an ensemble cannot be fine-tuned"),
    ],
)
def test_checkpoints_that_cannot_be_tuned_are_told(place, monkeypatch, capsys, change, arguments, line):
    record = torch.load("start.ckpt", weights_only=True)[KEY]
    record |= {"network": {**record["network"], **arguments}} | (change or {})
    if record["version"] is None:
        del record["version"]
    given = {key: value for key, value in record["network"].items() if key != "_target_"}
    weights = {f"network.{name}": weight for name, weight in UNet(**given).state_dict().items()}
    torch.save({"state_dict": weights, KEY: record}, "start.ckpt")
    if change is None:
        torch.save({"state_dict": weights, KEY: {**record, "threshold": 0.4}}, "again.ckpt")
        members = {path: load_model(path) for path in ("start.ckpt", "again.ckpt")}
        torch.save(combine(members), "start.ckpt")
    words = ["image=my.tif", "labels=painted.tif", "output=mine", "model=start.ckpt", *FEW, "rate=1e30"]
    assert command(monkeypatch, "finetune", *words) == 1
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_several_files_are_given_as_a_list(place, monkeypatch, capsys):
    write_volume("b.tif", np.zeros((8, 96, 96), np.uint8), SIZE)
    words = ["image=[my.tif,b.tif]", "labels=[painted.tif,b.tif]", "output=mine", *FEW]
    assert command(monkeypatch, "finetune", *words) == 1
    assert "image and labels are one file: 'b.tif'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["labels=none.tif"], "no such"),
        (["labels={a:3}"], "no such file"),
        (["labels=[painted.tif,[painted.tif]]"], "no such file"),
        (["rate=1e30", "model=start.ckpt"], "the loss is not finite; lower rate="),
        (["steps=0"], "steps is too small"),
        (["rate=-1"], "rate is not a number above 0"),
        (["model=nothing.ckpt"], "no such checkpoint"),
        (["reviewed=[99]"], "no such slice"),
        (["precision=half"], "no such choice of precision"),
    ],
)
def test_bad_input_is_one_line(place, monkeypatch, capsys, words, line):
    given = ["image=my.tif", "labels=painted.tif", "output=mine", *FEW, *words]
    assert command(monkeypatch, "finetune", *given) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert line in said[-1]
    if "rate=1e30" not in words:  # which fails late
        assert not Path("mine").exists(), "the corrected command gets the name"


def histogram(scores, truth):
    return workflow.logit_histogram(np.array(scores, np.float32), np.array(truth))


def test_a_part_is_judged_at_the_threshold_of_the_others():
    pieces = [(0, histogram([-1, 2, 3], [0, 0, 1])), (1, histogram([-1, 0.6, 3], [0, 1, 1]))]
    first, second = workflow.left_out_counts(pieces)
    assert (first.tp, first.fp) == (1, 1)  # the other part's threshold lies below 0.6
    assert (second.tp, second.fn) == (1, 1)  # and this one's above 2


def test_decided_is_what_prediction_decides():
    model = type("M", (), {"threshold": 0.3, "calibration": {"prior_shift": -1.0, "temperature": 2.0, "bias": 0.5}})
    scores = np.random.default_rng(0).normal(0, 3, 500).round(1) + 0.005
    truth = (scores + np.random.default_rng(1).normal(0, 2, 500) > 0).astype(int)
    found = workflow.decided(model, histogram(scores, truth))
    probability = 1 / (1 + np.exp(-((scores - 1.0) / 2.0 + 0.5)))
    assert found.tp == int(((probability >= 0.3) & (truth == 1)).sum())


def test_the_interval_is_that_of_a_mean_where_the_statistic_is_one():
    values = [3.0, 5.0, 4.0, 8.0]
    found = workflow.jackknife([v / 100 for v in values], lambda some: float(np.mean(some)))
    reach = 3.182446 * np.std(values, ddof=1) / 2 / 100
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05 - reach, 0.05 + reach))
    assert workflow.jackknife([0.5], lambda some: some[0]).low == -1


def test_the_interval_holds_the_truth_of_noisy_pieces():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        quality = rng.beta(8, 2, 6)
        pieces = [workflow.Counts(tp=int(1000 * q), fn=int(1000 * (1 - q))) for q in quality]
        found = workflow.jackknife(pieces, workflow.jaccard)
        held += found.low <= 0.8 <= found.high
    assert held >= 270


def test_suggestions_are_where_models_disagree_and_far_from_the_paint():
    volume = ArrayVolume(np.random.default_rng(0).integers(0, 255, (40, 64, 64)).astype(np.uint8), SIZE, "image")
    label_zyx = np.zeros((1, 64, 64), np.uint8)
    label_zyx[0, 20:40, 20:40] = 1
    painted = [Painted(volume, Box((z, 0, 0), (z + 1, 64, 64)), label_zyx) for z in (0, 1)]

    def predict(_, box):
        sure = np.zeros(box.shape, np.float32)
        sure[:, :8] = 0.9
        doubt = sure.copy()
        doubt[:, 8:16] = 0.9 * (box.start[0] > 20)
        return [sure, doubt]

    advice = workflow.advise(painted, predict)
    slices = [s.box.start[0] for s in advice.suggestions]
    assert min(slices) > 20
    assert slices[0] == 39
    assert advice.expected > 0
    alike = workflow.advise(painted, lambda _, box: [predict(_, box)[0]] * 2)
    assert alike.expected == 0
    assert "you may stop" in str(alike)


def test_fields_are_suggested_where_fields_are_painted():
    volume = ArrayVolume(np.random.default_rng(0).integers(0, 255, (1, 900, 900)).astype(np.uint8), SIZE, "image")
    field = Painted(volume, Box((0, 0, 0), (1, 256, 256)), np.ones((1, 256, 256), np.uint8))
    advice = workflow.advise([field], lambda _, box: [np.full(box.shape, p, np.float32) for p in (0.4, 0.6)])
    assert all(s.box.shape == (1, 256, 256) and not s.box.clip(field.box).size for s in advice.suggestions)
    assert "another field" in str(advice)


def test_thick_sections_are_seen_alone_and_fine_pixels_coarser():
    model = load_model(workflow.find_weights(None))

    def shaped(size, depth=40):
        return ArrayVolume(np.zeros((depth, 64, 64), np.uint8), size)

    assert workflow.choose_channels(model, shaped((50, 4.6, 4.6))) == "single"
    assert workflow.choose_channels(model, shaped((5, 5, 5))) == "every_second9"
    assert workflow.choose_channels(model, shaped((5, 5, 5), 1)) == "single"
    assert workflow.choose_pixel_size(model, shaped((50, 2, 2)), None) == (5, 5)
    assert workflow.choose_pixel_size(model, shaped((50, 8, 8)), None) == (8, 8)
    assert workflow.choose_pixel_size(model, shaped((50, 8, 8)), 10.0) == (10, 10)
    assert workflow.choose_pixel_size(model, shaped(None), None) is None


@pytest.mark.slow
def test_three_painted_sections_beat_the_start_model(real_data, tmp_path):
    folder = real_data / "vnc_sstem"
    paths = [str(folder / f"{name}_z00-14.tif") for name in ("image", "mitochondria")]
    found = open_painted(*([path] for path in paths), axes="zyx", voxel_size=[50.0, 4.6, 4.6])
    painted = [region for region in found if region.box.start[0] in (2, 8, 12)]
    found = workflow.finetune(workflow.FinetuneOptions(), tmp_path / "run", regions=painted)
    assert found.kept == "tuned"
    assert found.tuned.value > 0.65 > found.start.value
    assert found.gain.low > 0


def test_one_place_must_gain_more_than_several():
    def pieces(right, wrong):
        return [Counts(right + i % 3, wrong, 0, 10) for i in range(6)]

    start, anew, tuned = pieces(50, 50), pieces(70, 30), [Counts(72 - 9 * (i % 2), 18, 0, 10) for i in range(6)]
    assert workflow.jaccard(tuned) > workflow.jaccard(anew)
    assert workflow.choose_kept(start, anew, tuned, 3) == "tuned"
    noisy = [Counts(*((93, 7) if i % 2 else (60, 40)), 0, 10) for i in range(6)]
    assert workflow.choose_kept(start, anew, noisy, 3) == "tuned"
    assert workflow.jaccard(noisy) > workflow.jaccard(anew)
    assert workflow.choose_kept(start, anew, noisy, 1) == "threshold"
    assert workflow.choose_kept(start, anew, pieces(60, 40), 3) == "threshold", "less than a new threshold gives"
    assert workflow.choose_kept(start, start, start, 3) == "start"
