"""What goes wrong with ``predict``: one clear line, exit code 1, no output, and nothing left beside it."""

import errno
import os
import re
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from made_checkpoints import OneConvolution, Padded, predict, prepare, save_checkpoint, tif
from monai.networks.nets import UNet

from mitoseg import storage
from mitoseg.volumes.staging import StagedVolume

GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder to work in, but for a checkpoint, a good volume, and where runs are recorded."""
    (tmp_path / "runs").mkdir()
    return prepare(tmp_path, monkeypatch, GREY)


def files(folder):
    """Every file and folder below, with what is in the files; but for the records of runs."""
    found = (p for p in folder.rglob("*") if "runs" not in p.relative_to(folder).parts)
    return {p: p.read_bytes() if p.is_file() else None for p in found}


@pytest.fixture
def refused(work, monkeypatch, capsys):
    """Run the command; it must fail with one line and leave everything as it was; the line."""

    def run(*words):
        before = files(work)
        given = {"checkpoint": "a.ckpt", "input": "in.tif", "output": "out.tif", "trust": "true"}
        given |= dict(word.split("=", 1) for word in words)
        code = predict(monkeypatch, "hydra.run.dir=runs", *(f"{key}={value}" for key, value in given.items()))
        told = capsys.readouterr().err
        assert code == 1, told
        assert "Traceback" not in told
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert told.endswith(f"{errors[0]}\n")
        assert files(work) == before
        return errors[0]

    return run


OPTIONS = {
    "tile=5": "the option takes other values: tile=5; give a list, such as [a,b,c]",
    "tile=[1,1]": "tile is not a size: (1, 1); give tile=[z,y,x], each at least 1",
    "tile=[0,1,1]": "tile is not a size: (0, 1, 1)",
    "tile=[1.5,8,8]": "the option takes other values: tile=[1.5,8,8]; give whole numbers",
    "overlap=1": "the overlap is not a fraction of a tile: 1.0; give a number from 0 to below 1",
    "overlap=-0.1": "the overlap is not a fraction of a tile: -0.1",
    "overlap=nan": "the overlap is not a fraction of a tile: nan",
    "precision=fp16": "no such precision: 'fp16'; choose one of auto, fp32, bf16",
    "precision=16": "no such precision: '16'",
    "report=2": "report is neither true nor false: '2'; give report=true or report=false",
    "compile=maybe": "compile is neither true nor false: 'maybe'; choose auto, true or false",
    "tta=nonsense": "no such test-time augmentation: 'nonsense'; choose one of none, flips, turns, all",
    "window_stride=0": "window_stride is not a number of pixels: 0; give 1 or more",
    "window_stride=1.5": "the option takes other values: window_stride=1.5; give whole numbers",
    "threshold=high": "the option takes other values: threshold=high; give numbers",
    "threshold=nan": "the threshold is not a probability: nan; give a number from 0 to 1",
    "memory=nonsense": "not an amount of memory: 'nonsense'; write for instance memory=4GB",
    "memory=0": "not an amount of memory: 0",
    "memory=-1GB": "not an amount of memory: '-1GB'",
    "method=blend": "method blend does not fit a block network, OneConvolution",
    "method=null": "the option takes other values: method=null; give a value",
    "method=other": "no such method: 'other'; choose one of auto, dense, strided, window, blend",
    "missing_chunks=maybe": "no such choice of missing chunks: 'maybe'; choose missing_chunks=error or fill",
    "missing_slices=fill": "no such choice of missing slices: 'fill'; choose missing_slices=error or ignore",
    "voxel_size=5": "the option takes other values: voxel_size=5; give a list, such as [a,b,c]",
    "voxel_size=[5,5]": "cannot read the voxel size: [5.0, 5.0]",
    "axes=5": "cannot read the axes: '5'",
    "overwrite=flase": "the option takes other values: overwrite=flase; give true or false",
    "input=null": "input has no value",
    "output=": "output has no value",
    "+other=1": "no such option: 'other'",
    "+engine.other=1": "LocalEngine has no option 'other'; --help lists the options",
    "+postprocess.other=1": "Postprocess has no option 'other'",
    "checkpoint=": "no such checkpoint",
    "checkpoint=none.ckpt": "no such checkpoint: 'none.ckpt'",
    "input=none.tif": "'none.tif'",
    "output=out.xyz": "unknown kind of output: 'out.xyz'",
    "dtype=int64": "cannot save a probability as that type: 'int64'; use dtype=float32 or dtype=uint8",
    "engine=[]": "engine has no value; add engine=... to the command",
    "postprocess=[]": "postprocess has no value",
    "output=.": "unknown kind of output: '.'",
}


@pytest.mark.parametrize("word", OPTIONS)
def test_options(refused, word):
    assert OPTIONS[word] in refused(word)


def test_what_is_there_but_does_not_serve(refused):
    Path("empty").mkdir()
    assert "empty" in refused("input=empty")
    Path("out.tif").touch()
    assert "the output exists: 'out.tif'; choose another name or give overwrite=true" in refused()
    torch.save({"state_dict": {}}, "a.ckpt")
    assert "not written by mitoseg" in refused("output=new.tif")


def test_instances_do_not_fit_an_mrc(refused):
    """Said before anything is predicted."""
    assert "error: an MRC holds no uint32: 'out.mrc'" in refused("output=out.mrc", "save=instances")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_cuda(refused):
    assert "no such accelerator here: 'cuda'; use auto or one of cpu" in refused("accelerator=cuda")


@pytest.mark.parametrize("method", ["dense", "strided", "window"])
def test_methods_of_block_networks(refused, method):
    save_checkpoint("a.ckpt", Padded(), arguments={"in_channels": 1})
    assert f"method {method} needs a block network, not Padded" in refused(f"method={method}")


@pytest.mark.slow
def test_too_little_memory_says_how_much_is_enough(work, refused, monkeypatch):
    """Also where much is kept of a file that is decoded."""
    array = zarr.create_array(store="big.zarr", shape=(2000, 320, 320), chunks=(100, 320, 320), dtype="u1")
    array[0] = 1
    words = ["input=big.zarr", "missing_chunks=fill"]
    line = refused("memory=100MB", *words)
    remedy = re.search(r"too little memory: the smallest tile needs (\d+) MB.*; give (memory=[\d.]+GB) or more", line)
    assert int(remedy[1]) >= 134
    monkeypatch.setattr("mitoseg.workflows.predict.predict_volume", lambda *_, **__: 1 / 0)  # far enough
    given = ["checkpoint=a.ckpt", "output=out.tif", "trust=true", "hydra.run.dir=runs", *words]
    assert predict(monkeypatch, *given, remedy[2]) == 1
    monkeypatch.undo()


def damaged(path, offset, count=40):
    """Overwrite bytes of a file with zeros."""
    data = bytearray(Path(path).read_bytes())
    data[offset : offset + count] = bytes(count)
    Path(path).write_bytes(data)


def cut(path, share):
    """Keep the first part of a file."""
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(share * len(data))])


def corrupt_page(compression):
    tif("in.tif", GREY, compression=compression)
    with tifffile.TiffFile("in.tif") as opened:
        offset = opened.pages[3].dataoffsets[0]
    damaged("in.tif", offset, 200)


def truncated(compression, share):
    tif("in.tif", GREY, compression=compression)
    cut("in.tif", share)


def hdf5(share=1.0, *, damage=False):
    with h5py.File("in.h5", "w") as h5:
        dataset = h5.create_dataset("image", data=GREY, chunks=(1, 40, 48), compression="gzip")
        offset = dataset.id.get_chunk_info(4).byte_offset
    cut("in.h5", share)
    if damage:
        damaged("in.h5", offset + 5)


def hdf5_of(shape, **options):
    with h5py.File("in.h5", "w") as h5:
        dataset = h5.create_dataset("image", shape=shape, dtype="u1", **options)
        if dataset.size:
            dataset[:4] = GREY[:4]


def zarr_with(chunk=None, **options):
    array = zarr.create_array(store="in.zarr", shape=GREY.shape, chunks=(1, 40, 48), dtype="u1", **options)
    array[:] = GREY
    if chunk is not None:
        Path("in.zarr/c/3/0/0").write_bytes(chunk)


def zarr_without_a_chunk():
    zarr_with(fill_value=7)
    Path("in.zarr/c/3/0/0").unlink()


def ome_without_a_scale():
    """Which its format asks for: without one its pixels may have any size."""
    group = zarr.create_group(store="in.zarr")
    group.create_array("0", shape=GREY.shape, dtype="u1", chunks=GREY.shape)[:] = GREY
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}


def no_number(value):
    image = GREY.astype(np.float32)
    image[5, 30, 30] = value
    tif("in.tif", image)


UNREAD, SHORT = "the file cannot be read", "cut short|cannot be read"
VOLUMES = {
    **{f"corrupt {name}": ("in.tif", partial(corrupt_page, name), UNREAD) for name in ("zlib", "lzw", "packbits")},
    **{
        f"{share} of {name}": ("in.tif", partial(truncated, name, share), SHORT)
        for name in (None, "zlib")
        for share in (0.3, 0.7, 0.99)
    },
    **{f"{share} of HDF5": ("in.h5:/image", partial(hdf5, share), "truncated file") for share in (0.3, 0.95)},
    "a damaged chunk": ("in.h5:/image", partial(hdf5, damage=True), UNREAD),
    "an unwritten chunk": ("in.h5", partial(hdf5_of, GREY.shape, chunks=(1, 40, 48)), "2 of 6 chunks were never"),
    "no voxels": ("in.h5", partial(hdf5_of, (6, 0, 48)), r"the volume is empty, its shape is \(6, 0, 48\)"),
    "a missing chunk": ("in.zarr", zarr_without_a_chunk, r"1 of 6 chunks are missing .* 7.*missing_chunks=fill"),
    "an empty chunk": ("in.zarr", partial(zarr_with, b""), UNREAD),
    "an odd chunk": ("in.zarr", partial(zarr_with, b"abc"), UNREAD),
    "no scale": ("in.zarr", ome_without_a_scale, r"states no scale: 'in.zarr'; give voxel_size=\[z,y,x\] in nm"),
    "NaN": ("in.tif", partial(no_number, np.nan), "the image holds NaN"),
    "infinite": ("in.tif", partial(no_number, np.inf), "values that are infinite"),
}


@pytest.mark.parametrize("case", VOLUMES)
def test_volumes(refused, case):
    path, make, told = VOLUMES[case]
    make()
    assert re.search(told, refused(f"input={path}"))


@pytest.mark.parametrize("names", [("1", "2", "4"), ("1", "2", "02")])
def test_numbers_of_slices_that_are_missing_or_there_twice(work, refused, monkeypatch, capsys, names):
    Path("slices").mkdir()
    for name, image in zip(names, GREY, strict=False):
        tif(f"slices/z{name}.tif", image)
    assert re.search("slice is missing|is there twice", refused("input=slices"))
    words = ["checkpoint=a.ckpt", "trust=true", "hydra.run.dir=runs", "input=slices", "output=out.tif"]
    assert predict(monkeypatch, *words, "missing_slices=ignore") == 0
    assert re.search("slices: .*(slice is missing|is there twice)", capsys.readouterr().err)


def test_two_runs_into_one_output(refused):
    with StagedVolume("out.tif", {}):
        assert "another process is writing this output: 'out.tif'; wait for it" in refused()


def test_a_volume_smaller_than_the_window(refused):
    save_checkpoint("a.ckpt")
    tif("in.tif", GREY[:, :20, :20])
    assert "smaller than the network's window: (20, 20); it takes 32 x 32 voxels" in refused()


@pytest.mark.parametrize("network", [Padded(ndim=3), OneConvolution(ndim=3)], ids=["blend", "dense"])
def test_one_slice_for_a_network_on_volumes(refused, network):
    save_checkpoint("a.ckpt", network, arguments={"in_channels": 1, "ndim": 3})
    tif("in.tif", GREY[:1])
    assert re.search(r"is 3D, the image is one slice|smaller than the network's window: \(1,", refused())


RECORDS = {
    "other channels": ({"channels": "adjacent"}, "takes 1 channels, its channels=adjacent make: 3"),
    "unknown channels": ({"channels": "rgb"}, "no such channels: 'rgb'"),
    "no spread": ({"normalization": {"mean": 1.0, "std": 0.0}}, "invalid values"),
    "half a normalisation": ({"normalization": {"mean": 1.0}}, "incomplete (KeyError: 'std')"),
    "words": ({"normalization": {"mean": "grey", "std": 1.0}}, "incomplete (TypeError"),
    "unknown calibration": ({"calibration": {"slope": 1.0}}, "incomplete (KeyError"),
    "no calibration": ({"calibration": None}, "incomplete (TypeError"),
    "no temperature": ({"calibration": {"temperature": 0.0}}, "invalid values"),
    "threshold": ({"threshold": 7}, "invalid values"),
    "voxel size": ({"voxel_size": [5.0, 5.0]}, "invalid values"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_of_checkpoints(refused, case):
    changes, told = RECORDS[case]
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1}, **changes)
    assert told in refused()


@pytest.mark.parametrize("words", [[], ["tile=[2,32,32]"], ["tta=flips"]], ids=str)
def test_a_network_whose_layers_do_not_fit_together(refused, words):
    """Its weights do; what fails is to run it."""
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [2, 2, 2], "strides": [2, 3]}
    save_checkpoint("a.ckpt", UNet(**arguments), arguments=arguments)
    assert "the network fails on an image of this shape (RuntimeError" in refused(*words)


def test_half_a_checkpoint(refused):
    cut("a.ckpt", 0.5)
    assert "not a checkpoint that is safe to load" in refused()


def test_a_folder_of_the_output_is_a_file(refused):
    Path("file").touch()
    assert "the output cannot be written (Not a directory): 'file/out.tif'" in refused("output=file/out.tif")


def test_a_folder_that_may_not_be_written(refused, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    assert "the output cannot be written: 'out.tif'; check the permissions" in refused()


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long(refused, length):
    assert "name too long" in refused(f"output=new/{'a' * (length - 4)}.tif")


@pytest.mark.parametrize("image", ["in.tif", "nan.tif"])
def test_folders_made_for_the_output_go_away(refused, image):
    tif("nan.tif", np.where(GREY[1, 20, 20] == GREY, np.nan, GREY).astype(np.float32))
    word = "memory=nonsense" if image == "in.tif" else "input=nan.tif"
    refused(word, "output=new/deep/out.tif")


def links():
    os.symlink("in.tif", "link.tif")
    os.symlink(".", "folder")


def datasets():
    with h5py.File("in.h5", "w") as h5:
        h5["x"] = h5["volume"] = GREY


def slices():
    for i, image in enumerate(GREY):
        tif(f"slices/{i}.tif", image)


def group():
    made = zarr.create_group(store="in.zarr")
    made.create_array("a", shape=GREY.shape, chunks=(1, 40, 48), dtype="u1")[:] = GREY


ITSELF, INSIDE = "the output is the input itself", "the output lies inside the input or around it"
PLACES = [
    (lambda: None, "in.tif", "./in.tif", ITSELF),
    *((links, *names, ITSELF) for names in (("in.tif", "link.tif"), ("in.tif", "folder/in.tif"))),
    (links, "link.tif", "in.tif", ITSELF),
    *((datasets, f"in.h5{a}", f"in.h5{b}", ITSELF) for a, b in ((":/x", ":/y"), (":/x", ":/x"), ("", ":/x"))),
    *((datasets, f"in.h5{a}", "in.h5", ITSELF) for a in (":/x", ":/volume")),
    *((slices, "slices", f"slices/{name}.tif", INSIDE) for name in ("3", "out")),
    *((zarr_with, "in.zarr", name, "the output ") for name in ("in.zarr", "in.zarr/out.tif")),
    *((group, name, "in.zarr", INSIDE) for name in ("in.zarr/a", "in.zarr:/a")),
]


@pytest.mark.parametrize("overwrite", ["true", "false"])
@pytest.mark.parametrize(("make", "source", "output", "told"), PLACES)
def test_the_output_is_the_input(refused, make, source, output, told, overwrite):
    make()
    assert told in refused(f"input={source}", f"output={output}", f"overwrite={overwrite}")


def test_a_folder_that_is_no_array(refused):
    Path("out.tif").mkdir()
    Path("out.tif/precious").touch()
    assert "the output exists" in refused()
    assert "the output is a folder that overwriting would remove" in refused("overwrite=true")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "words",
    [
        *(["method=dense"], ["method=strided", "save=mask"], ["method=window"]),
        *(["checkpoint=whole.ckpt", "save=instances"], ["checkpoint=whole.ckpt", "save=uncertainty", "tta=flips"]),
    ],
    ids=" ".join,
)
def test_a_network_that_answers_no_number(refused, words, value):
    """Whatever the method; the line says where."""
    for name, network in (("a", OneConvolution()), ("whole", Padded())):
        save_checkpoint(f"{name}.ckpt", network, arguments={"in_channels": 1})
        checkpoint = torch.load(f"{name}.ckpt", weights_only=True)
        bias = next(key for key in checkpoint["state_dict"] if key.endswith("bias"))
        checkpoint["state_dict"][bias][1] = value
        torch.save(checkpoint, f"{name}.ckpt")
    line = refused(*words, "tile=[2,40,48]")
    assert "NaN or infinity in the tile (z, y, x) = [0:" in line
    assert "in.tif" in line
