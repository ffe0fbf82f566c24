"""Decision trees as plain arrays: a forest or a boosted sum, whatever grew it, saved and evaluated alike.

All trees lie one behind the other; children are counted from the root of their tree, and a leaf has no left child (0,
because no child is a root). A voxel goes left where its feature is at most the threshold, and the answer is the sum
of the values of the leaves that it ends in. Their file is an ``.npz`` of arrays and a line of JSON, without code.
"""

from __future__ import annotations

import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mitoseg.classical.features import FloatArray
from mitoseg.errors import UserError
from mitoseg.storage import atomic_output, plain

_BLOCK = 2**15  # voxels at a time: their features stay in the cache from tree to tree


@dataclass(frozen=True)
class TreeEnsemble:
    """Trees whose leaves are summed."""

    start: npt.NDArray[np.int64]  # (T + 1), first node of each tree, and the number of nodes
    feature: npt.NDArray[np.int32]  # (N), which is asked about
    threshold: npt.NDArray[np.float64]  # (N), at and below which a voxel goes left
    left: npt.NDArray[np.int32]  # (N), 0 at a leaf
    right: npt.NDArray[np.int32]  # (N)
    value: npt.NDArray[np.float64]  # (N), of the leaves

    @classmethod
    def join(cls, trees: Iterable[Mapping[str, npt.NDArray[Any]]]) -> Self:
        """Put trees one behind the other, each given by its arrays but for ``start``."""
        parts = list(trees)
        whole, real = ("feature", "left", "right"), ("threshold", "value")
        types: dict[str, Any] = {**dict.fromkeys(whole, np.int32), **dict.fromkeys(real, np.float64)}
        joined = {name: np.concatenate([p[name] for p in parts]).astype(kind) for name, kind in types.items()}
        sizes = [len(p["left"]) for p in parts]
        return cls(start=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), **joined)

    @classmethod
    def from_forest(cls, trees: Sequence[Any]) -> Self:
        """Trees of a scikit-learn forest, as the mean of their shares of the second class."""
        return cls.join(
            {
                "feature": np.maximum(tree.feature, 0),
                "threshold": tree.threshold,
                "left": np.maximum(tree.children_left, 0),
                "right": np.maximum(tree.children_right, 0),
                "value": tree.value[:, 0, 1] / len(trees),
            }
            for tree in (t.tree_ for t in trees)
        )

    @classmethod
    def from_boosting(cls, model: Any) -> Self:  # noqa: ANN401 (scikit-learn has no types)
        """Trees of scikit-learn's histogram boosting for two classes; the first tree carries the base line."""
        trees = []
        for (predictor,) in model._predictors:
            nodes, inner = predictor.nodes, predictor.nodes["is_leaf"] == 0
            parts = {"feature": "feature_idx", "threshold": "num_threshold", "left": "left", "right": "right"}
            tree = {name: np.where(inner, nodes[column], 0) for name, column in parts.items()}
            trees.append(tree | {"value": nodes["value"].copy()})
        trees[0]["value"] += float(model._baseline_prediction.item())
        return cls.join(trees)

    def check(self, features: int) -> Self:
        """The same trees, if no node leads back or out of its tree or asks for a feature that there is not."""
        last = np.repeat(self.start[1:] - self.start[:-1], np.diff(self.start))
        own = np.arange(self.start[-1]) - np.repeat(self.start[:-1], np.diff(self.start))
        inner = self.left != 0
        forward = all(((child > own) & (child < last))[inner].all() for child in (self.left, self.right))
        known = ((self.feature >= 0) & (self.feature < features)).all()
        if not forward or not known or any(len(a) != self.start[-1] for a in list(vars(self).values())[1:]):
            raise UserError("the saved trees are damaged", None, "train and save the method again")
        return self

    def __call__(self, features_fn: FloatArray, threads: int = 1) -> npt.NDArray[np.float64]:
        """Sum (N,) of the leaves of each voxel, from its features (F, N); the threads share the voxels."""
        out = np.empty(features_fn.shape[1])
        walks = _walks(self)

        def fill(begin: int) -> None:
            x_nf = np.ascontiguousarray(features_fn[:, begin : begin + _BLOCK].T, np.float64)
            out[begin : begin + _BLOCK] = sum(walk(x_nf) for walk in walks)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, len(out), _BLOCK)))  # raises what a thread has raised
        return out


Walk = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def _walks(trees: TreeEnsemble) -> list[Walk]:
    """For each tree a function from features (N, F) to the value of the leaf.

    Scikit-learn's compiled walk is some five times faster than numpy's, but no part of its public interface: where it
    is missing or has changed, numpy's is taken. Both give the same numbers.
    """
    arrays = {name: array for name, array in vars(trees).items() if name != "start"}
    each = [
        TreeEnsemble(start=np.array([0, b - a]), **{name: array[a:b] for name, array in arrays.items()})
        for a, b in itertools.pairwise(trees.start.tolist())
    ]
    try:
        from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
        from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

        return [_compiled(tree, PREDICTOR_RECORD_DTYPE, TreePredictor) for tree in each]
    except (ImportError, TypeError, ValueError):
        return [partial(_walk, tree) for tree in each]


def _walk(tree: TreeEnsemble, x_nf: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values of the leaves that the rows end in, all rows taking a step at a time."""
    node, going = np.zeros(len(x_nf), np.intp), np.arange(len(x_nf))
    while len(going := going[tree.left[node[going]] != 0]):
        here = node[going]
        goes_left = x_nf[going, tree.feature[here]] <= tree.threshold[here]
        node[going] = np.where(goes_left, tree.left[here], tree.right[here])
    return tree.value[node]


def _compiled(tree: TreeEnsemble, record: Any, predictor: Any) -> Walk:  # noqa: ANN401 (no types)
    """The walk through one tree as scikit-learn compiled it for its own boosting."""
    nodes = np.zeros(len(tree.left), record)
    columns = {"feature_idx": tree.feature, "num_threshold": tree.threshold, "left": tree.left, "right": tree.right}
    for name, values in {**columns, "value": tree.value, "is_leaf": tree.left == 0}.items():
        nodes[name] = values
    no_sets, none_mapped = np.zeros((0, 8), np.uint32), np.zeros(0, np.uint32)
    whole = predictor(nodes, no_sets, no_sets)
    # one thread here, because those of the blocks never wait for each other
    return partial(whole.predict, known_cat_bitsets=no_sets, f_idx_map=none_mapped, n_threads=1)


Arrays = dict[str, npt.NDArray[Any]]

FORMAT = "mitoseg classical 1"

_DAMAGED = (
    *(OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, RuntimeError, ArithmeticError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)
"""What reading an archive raises that is damaged, or that claims more than there is."""


def save_arrays(
    path: Path | str, kind: str, facts: Mapping[str, object], arrays: Arrays, *, overwrite: bool = False
) -> None:
    """Write the file of a method of this class; it appears only when it is whole.

    ``facts`` are whatever JSON can hold, ``arrays`` none of objects.
    """
    text = json.dumps({"format": FORMAT, "kind": kind, **plain(facts)})
    with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, facts=np.array(text), **arrays)


def load_arrays(path: Path | str, kind: str) -> tuple[dict[str, Any], Arrays]:
    """Facts and arrays of the file of a method, which must be of this class."""
    remedy = "give a file that was saved by this method"
    try:
        # opened here, because np.load leaves a damaged file open
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop("facts")))
    except FileNotFoundError as error:
        raise UserError("no such file", str(path), "check the path") from error
    except _DAMAGED as error:
        raise UserError("the file holds no trained method", str(path), remedy) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("kind") != kind:
        found = facts.get("kind") if isinstance(facts, dict) else None
        raise UserError(f"the file holds {found or 'something else'}, not {kind}", str(path), remedy)
    return facts, arrays
