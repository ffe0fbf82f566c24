"""Lines along the middle of a mitochondrion: one that is measured, and skeletons, trees with radii, for files.

Thinning voxels makes spurs and, with Lee's method, lets some round objects vanish. So for measuring the voxels are
gathered into cells, 1,500 or so an object, each with its voxel of largest radius as node, and paths run along a graph
of neighbouring cells as in TEASAR (Sato et al., Pacific Graphics 2000): the main path between the nodes that lie
farthest apart, where steps cost more the farther they are from the middle; then side paths from the node farthest from
all paths, while it lies at least a radius beyond the parent's surface. At a blunt end a path stops at the last ball
that contains the tip, and that ball's radius is added: a tube is measured from tip to tip, a ball by its diameter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import edt
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.ndimage import gaussian_filter1d
from scipy.sparse.csgraph import breadth_first_order, connected_components, dijkstra
from scipy.spatial import cKDTree

from mitoseg.errors import import_extra
from mitoseg.segmentation.smooth_shape import Floats, Mask, SmoothShape, shape_mesh

_TO_SURFACE = 0.3
"""Steps that the surface lies before the nearest voxel of the background, on the mean of all directions."""
_COST = 50.0  # how much dearer a step along the surface is than one in the middle
_SMOOTH = 2.0
"""Standard deviation, in steps between nodes, by which a path's positions are smoothed before it is measured."""
MOST_BRANCHES = 100  # side paths that are looked for; no mitochondrion has so many


@dataclass(frozen=True)
class Centreline:
    """What the line along the middle says, in nm."""

    length: float  # of the main path, from tip to tip; a closed ring's is about half of its circumference
    straight: float  # between its tips
    diameter_mean: float  # of the balls that fit along all paths
    diameter_max: float  # of the largest ball that fits
    branches: int  # side paths: 0 for a simple tube, 1 for a Y or a T

    @property
    def tortuosity(self) -> float:
        """Length over straight distance; 1 is straight."""
        return self.length / self.straight


def shape_centreline(shape: SmoothShape, vertices: Floats | None = None) -> Centreline:
    """The centreline of a smooth shape; of its largest piece where there are several.

    Where the volume's border cuts the object, the length ends there. What is cut off on all sides has no middle: its
    crop's longest and shortest side are given. ``vertices`` are those of `shape_mesh`, if it was called before.
    """
    vertices = shape_mesh(shape)[0] if vertices is None else vertices
    if not len(vertices):
        sides = [b - a for a, b in zip(shape.low, shape.high, strict=True)]
        return Centreline(max(sides), max(sides), min(sides), min(sides), 0)
    nodes = _nodes(shape, shape.inside_zyx)
    count, piece = connected_components(nodes.graph, directed=False)
    if count > 1:  # perhaps only because a neck is thinner than the blur
        nodes = _nodes(shape, shape.inside_zyx | shape.mask_zyx)
        _, piece = connected_components(nodes.graph, directed=False)
    largest = piece == np.bincount(piece).argmax()
    first = _farthest(nodes.graph, int(np.where(largest, nodes.radius, -1).argmax()))
    last = _farthest(nodes.graph, first)
    away = 1 - nodes.radius / max(float(nodes.radius.max()), 1e-9)  # from the object's middle
    indices, indptr = nodes.graph.indices, nodes.graph.indptr
    rows = np.repeat(np.arange(len(away)), np.diff(indptr))
    factor = 1 + _COST * (0.5 * (away[rows] + away[indices])) ** 2
    cost = sparse.csr_array((nodes.graph.data * factor, indices, indptr), nodes.graph.shape)
    _, before = dijkstra(cost, indices=first, return_predecessors=True)
    main = _without_tips(nodes, _trace(before, last))
    paths = [main, *_side_paths(nodes, cost, main)]
    along, graph, middle = np.concatenate(paths), nodes.graph, []
    for node in along:  # a path may pass beside the middle, in which a neighbour lies
        around = np.append(graph.indices[graph.indptr[node] : graph.indptr[node + 1]], node)
        middle.append(int(around[nodes.radius[around].argmax()]))
    # The radius there is the distance to the mesh. Where the mesh has no neck since it is too thin, the distance to
    # the background is known to a step or so.
    chosen = [*along, *middle, int(nodes.radius.argmax())]
    to_mesh = cKDTree(vertices).query(nodes.position[chosen])[0]
    radius = nodes.radius.copy()
    radius[chosen] = np.minimum(to_mesh, radius[chosen] + max(shape.step))
    nodes = replace(nodes, radius=radius)
    line, ends = smooth_line(nodes.position[main], _SMOOTH), 0.0
    for node in (main[0], main[-1]):  # the radius at each end is added, less what lies beyond a cut
        room = float(nodes.radius[node])
        ends_of_axes = zip(nodes.position[node], shape.low, shape.high, shape.cut, strict=True)
        for at, low, high, (cut_low, cut_high) in ends_of_axes:
            room = min(room, at - low if cut_low else room, high - at if cut_high else room)
        ends += room
    thickness = np.maximum(nodes.radius[along], nodes.radius[middle])
    length, straight = np.linalg.norm(np.diff(line, axis=0), axis=1).sum(), np.linalg.norm(line[-1] - line[0])
    diameters = 2 * float(thickness.mean()), 2 * float(max(thickness.max(), nodes.radius.max()))
    return Centreline(float(length) + ends, float(straight) + ends, *diameters, len(paths) - 1)


def _nodes(shape: SmoothShape, inside_zyx: Mask) -> Nodes:
    """Cells of what is inside, less what lies beyond the volume's border; positions from the field's first sample."""
    uncut, inside_zyx = shape.uncut, np.ascontiguousarray(inside_zyx)
    depth_zyx = edt.edt(inside_zyx, anisotropy=shape.step, black_border=False, parallel=1)[uncut]
    near_zyx = np.maximum(depth_zyx - np.float32(_TO_SURFACE * min(shape.step)), 0)
    nodes = gather_cells(np.where(inside_zyx[uncut], near_zyx, -1), shape.step)
    offset = np.array([s.start for s in uncut]) * np.array(shape.step)
    return replace(nodes, position=nodes.position + offset)


def _farthest(graph: sparse.csr_array, start: int) -> int:
    distance = dijkstra(graph, indices=start)
    return int(np.where(np.isfinite(distance), distance, -1).argmax())


def _trace(before: npt.NDArray[np.integer], node: int) -> list[int]:
    """The path that ends at a node, from the end of it."""
    path = [node]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path


def _side_paths(nodes: Nodes, cost: sparse.csr_array, main: list[int]) -> list[list[int]]:
    """Paths to what lies at least a radius beyond the surface of a ball on the known paths, the longest first."""
    n, widest = len(nodes.radius), float(nodes.radius.max())
    known, found = list(main), []
    for _ in range(MOST_BRANCHES):
        # Distance of every node from the surface of the nearest ball twice as large as those that fit on known paths:
        # one more node stands before all known ones, at a distance that is the shorter the larger the ball is.
        lead = sparse.csr_array(
            (2 * (widest - nodes.radius[known]) + 1e-6 * widest, (np.zeros(len(known), int), known)), shape=(1, n)
        )
        graph = sparse.block_array([[nodes.graph, None], [lead, sparse.csr_array((1, 1))]], format="csr")
        reach = dijkstra(graph, indices=n)[:n]
        beyond = np.where(np.isfinite(reach), reach - 2 * widest, -1)
        tip = int(beyond.argmax())
        if beyond[tip] <= 2 * nodes.cell:
            break
        _, before, _ = dijkstra(cost, indices=known, min_only=True, return_predecessors=True)
        path = _without_tips(nodes, _trace(before, tip)[:-1], ends=1)
        found.append(path)
        known += path
    return found


def _without_tips(nodes: Nodes, path: list[int], ends: int = 2) -> list[int]:
    """The path from the last ball that contains its first end; with two ends, to the last that contains its other."""
    kept = path
    for _ in range(ends):
        away = np.linalg.norm(nodes.position[kept] - nodes.position[kept[0]], axis=1)
        covering = np.flatnonzero(away <= nodes.radius[kept] + 0.25 * nodes.cell)
        kept = kept[covering[-1] if len(covering) else 0 :][::-1]
    return kept


def smooth_line(line: Floats, sigma: float, truncate: float = 4.0) -> Floats:
    """The points (n, 3) of a line, filtered by a Gaussian of ``sigma`` points without its two ends moving."""
    n = min(len(line) - 1, int(truncate * sigma + 0.5))
    padded = np.pad(line, ((n, n), (0, 0)), "reflect", reflect_type="odd")
    smooth: Floats = gaussian_filter1d(padded, sigma, axis=0, mode="nearest", truncate=truncate)
    return smooth[n : n + len(line)]


MOST_CELLS = 1500
"""About as many cells an object has at most; paths through more take longer and are hardly more exact."""
_FORWARD = [o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0)]


@dataclass(frozen=True)
class Nodes:
    """One node for each cell: its voxel that is deepest inside the object."""

    position: Floats  # (n, 3), z, y, x in nm from the first voxel
    radius: Floats  # (n,), of the ball that fits there, in nm
    graph: sparse.csr_array  # (n, n), symmetric: distances in nm between nodes of neighbouring cells
    cell: float  # width of a cell in nm, the mean over the axes


def gather_cells(radius_zyx: npt.NDArray[np.float32], step: Sequence[float]) -> Nodes:
    """Gather the voxels of an object into cells of as many voxels as it takes, at least one.

    The radius is about that of the ball that fits at each voxel, in nm, and negative outside the object. Without a
    voxel inside, one of the largest value is taken.
    """
    voxel = np.argwhere(radius_zyx >= 0)
    if not len(voxel):
        voxel = np.array([np.unravel_index(radius_zyx.argmax(), radius_zyx.shape)])
    radius = np.maximum(radius_zyx[tuple(voxel.T)], 0).astype(np.float64)
    size = np.asarray(step, float)
    edge = (max(len(voxel) / MOST_CELLS, 1) * size.prod()) ** (1 / 3)
    width = np.maximum(np.round(edge / size), 1).astype(int)  # voxels of a cell along each axis, about equal in nm
    shape = tuple(-(-n // w) + 2 for n, w in zip(radius_zyx.shape, width, strict=True))
    cell = np.ravel_multi_index(tuple((voxel // width + 1).T), shape)
    order = np.lexsort((-radius, cell))
    keys, first = np.unique(cell[order], return_index=True)
    chosen = order[first]
    position, rows, columns = voxel[chosen] * size, [], []
    for offset in _FORWARD:  # nodes whose cells are among the 26 neighbours
        other = keys + (offset[0] * shape[1] + offset[1]) * shape[2] + offset[2]
        at = np.searchsorted(keys, other).clip(0, len(keys) - 1)
        there = keys[at] == other
        rows.append(np.flatnonzero(there))
        columns.append(at[there])
    row, column = np.concatenate(rows), np.concatenate(columns)
    data, n = np.tile(np.linalg.norm(position[row] - position[column], axis=1), 2), len(keys)
    graph = sparse.csr_array((data, (np.concatenate([row, column]), np.concatenate([column, row]))), shape=(n, n))
    return Nodes(position, radius[chosen], graph, float(np.mean(width * size)))


SCALE, CONST = 1.5, 100.0
"""A branch is kept if it leaves the ball of ``SCALE`` radii and ``CONST`` nm around the line that is there."""
_ZIGZAG = 4.0  # standard deviation along the line, in points, of what takes the zigzag of voxels away


@dataclass(frozen=True)
class Skeleton:
    """The centre line of one object: one tree for each of its parts."""

    points: npt.NDArray[np.float64]  # (n, 3), (x, y, z) in nm, in the coordinates of `mitoseg.segmentation.meshes`
    radii: npt.NDArray[np.float64]  # (n,), distance to the surface in nm
    edges: npt.NDArray[np.int64]  # (m, 2), pairs of points

    @cached_property
    def length(self) -> float:
        """Sum of the lengths of all edges, in nm."""
        a, b = self.points[self.edges[:, 0]], self.points[self.edges[:, 1]]
        return float(np.linalg.norm(a - b, axis=1).sum())

    @property
    def degree(self) -> npt.NDArray[np.int64]:
        """Edges at each point: 1 at an end, more than 2 where branches meet."""
        return np.bincount(self.edges.ravel(), minlength=len(self.points))


def skeletonize(
    mask_zyx: Mask,
    voxel_size: Sequence[float],
    *,
    start: Sequence[int] = (0, 0, 0),
    scale: float = SCALE,
    const: float = CONST,
) -> Skeleton:
    """The centre line of one object, from end to end; a single point where the object is smaller than its own ball.

    kimimaro's line runs through voxels; it is smoothed between its ends and junctions, which stay, because a zigzag
    is up to 8 % longer than the line it stands for.

    Short branches go: those within ``scale`` times the radius plus ``const`` nm of a line. For the other arguments see
    `mitoseg.segmentation.mesh_object`.
    """
    if not mask_zyx.any():
        raise ValueError("an empty mask has no skeleton")
    kimimaro = import_extra("kimimaro", "kimimaro", "mesh")
    padded_zyx = np.pad(mask_zyx, 1).astype(np.uint8)
    size = np.array([float(v) for v in voxel_size])
    found = kimimaro.skeletonize(
        padded_zyx,
        teasar_params={"scale": scale, "const": const, "pdrf_scale": 100_000, "pdrf_exponent": 4,
                       "soma_detection_threshold": np.inf, "soma_acceptance_threshold": np.inf},
        anisotropy=tuple(size.tolist()), dust_threshold=0, progress=False, fix_borders=False, parallel=1,
    ).get(1)  # fmt: skip
    if found is None or not len(found.vertices):
        depth_zyx = edt.edt(padded_zyx, anisotropy=tuple(size.tolist()))
        deepest = np.array(np.unravel_index(int(depth_zyx.argmax()), depth_zyx.shape))
        zyx = size * (deepest - 0.5 + np.asarray(start))
        return Skeleton(zyx[None, ::-1], np.array([float(depth_zyx.max())]), np.zeros((0, 2), np.int64))
    # kimimaro puts a voxel at its index; ours has its centre half a voxel farther, and is padded by one.
    zyx = np.asarray(found.vertices, np.float64) + size * (np.asarray(start) - 0.5)
    skeleton = Skeleton(zyx[:, ::-1], np.asarray(found.radii, np.float64), np.asarray(found.edges, np.int64))
    return smooth_lines(skeleton)


def smooth_lines(skeleton: Skeleton, sigma: float = _ZIGZAG) -> Skeleton:
    """Each line between ends and junctions, filtered by a Gaussian of ``sigma`` points; its two ends stay in place."""
    points = skeleton.points.copy()
    neighbours: list[list[int]] = [[] for _ in points]
    for a, b in skeleton.edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    for node in [i for i, around in enumerate(neighbours) if len(around) not in (0, 2)]:
        for following in neighbours[node]:
            line = [node, following]
            while len(neighbours[line[-1]]) == 2:
                a, b = neighbours[line[-1]]
                line.append(b if a == line[-2] else a)
            if line[0] < line[-1] and len(line) > 2:
                points[line] = smooth_line(skeleton.points[line], min(sigma, len(line) / 4), truncate=3)
    return Skeleton(points, skeleton.radii, skeleton.edges)


def swc(skeleton: Skeleton, number: int) -> str:
    """The skeleton in the SWC format: n T x y z R P, here all in nm, like the meshes.

    T is 0 (undefined); P is -1 at the root of each tree, and parents come before their children.
    """
    rows = [f"# instance {number}", "# unit: nm", "# n T x y z R P"]
    count = len(skeleton.points)
    ones = np.ones(len(skeleton.edges))
    graph = sparse.csr_array((ones, (skeleton.edges[:, 0], skeleton.edges[:, 1])), shape=(count, count))
    _, tree = connected_components(graph, directed=False)
    place: dict[int, int] = {}
    for root in np.unique(tree, return_index=True)[1].tolist():
        order, parent = breadth_first_order(graph, root, directed=False)
        for node in order.tolist():
            place[node] = len(place) + 1
            x, y, z = skeleton.points[node]
            above = -1 if node == root else place[int(parent[node])]
            rows.append(f"{place[node]} 0 {x:.3f} {y:.3f} {z:.3f} {skeleton.radii[node]:.3f} {above}")
    return "\n".join(rows) + "\n"
