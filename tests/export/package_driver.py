"""Makes and uses packages in a process of its own: bioimageio leaves files open, which tests would count as errors.

``python package_driver.py FOLDER`` leaves there tiny.zip, found.npy (bioimageio.core's prediction), page.npy (that of
the page's code) and told.json.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
from exported_models import block_model, grey_volume, unet_model

from mitoseg.errors import UserError
from mitoseg.export import package
from mitoseg.export.package import export_package

FACTS = {
    "name": "lucchi",
    "title": "EPFL CA1 (Lucchi et al.)",
    "citation": "Lucchi",
    "doi": "10.1109/TMI.2011.2171705",
}
PAGE = Path(__file__).parents[2] / "docs" / "EXCHANGE.md"


def make(model, path, **more):
    more = {"name": "tiny", "image": grey_volume, "card": "# Card\n\n## Use\n", "facts": FACTS, **more}
    return export_package(model, path, **more)


def refused():
    """What is said of a package whose test output is wrong."""
    right = package.expected
    package.expected = lambda *a: np.clip(right(*a) + np.float32(0.1), 0, 1)
    try:
        make(block_model("PatchCNN", "single"), "wrong.zip")
    except UserError as error:
        return str(error)
    finally:
        package.expected = right
    return "nothing"


def main(folder):
    from bioimageio.core import predict

    os.chdir(folder)
    steps = []
    told = make(unet_model(channels="adjacent5"), "tiny.zip", on_step=steps.append)
    found = predict(model="tiny.zip", inputs=grey_volume((9, 80, 96), seed=3)[None, None].astype(np.float32))
    np.save("found.npy", found.members["probability"].data.to_numpy()[0, 0])
    make(block_model(), "package.zip", name="blocks")
    np.save("stack.npy", grey_volume((6, 80, 90)))
    names = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], names)
    np.save("page.npy", names["probability"][0, 0])
    told = {"form": told.form, "difference": told.difference, "steps": steps, "refused": refused()}
    Path("told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
