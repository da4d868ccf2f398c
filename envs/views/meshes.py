"""Triangle meshes for views: read, stretch, and bring to one size."""

from pathlib import Path

import numpy as np


def read_obj(path: Path) -> np.ndarray:
    """Triangles [F, 3, 3] float64 of a Wavefront OBJ file; polygons become fans, materials are ignored.

    Raises:
        FileNotFoundError, ValueError: naming the file, if it is missing, damaged or without a face.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no mesh at {path}")
    vertices: list[list[float]] = []
    corners: list[tuple[int, int, int]] = []
    try:
        for line in path.read_text(errors="replace").splitlines():
            kind, *words = line.split() or [""]
            if kind == "v":
                x, y, z = words[:3]
                vertices.append([float(x), float(y), float(z)])
            elif kind == "f":
                face = [int(word.split("/")[0]) for word in words]
                # Positive indices count from 1, negative ones from the latest vertex backwards.
                face = [i - 1 if i > 0 else len(vertices) + i for i in face]
                corners += [(face[0], face[k], face[k + 1]) for k in range(1, len(face) - 1)]
        triangles = np.asarray(vertices, np.float64)[np.asarray(corners, np.int64)]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no Wavefront OBJ file, or a damaged one: {error}") from error
    if not len(triangles) or not np.isfinite(triangles).all():
        raise ValueError(f"{path} has no triangle, or a vertex that is no number")
    return triangles


def to_unit_sphere(triangles: np.ndarray) -> np.ndarray:
    """Triangles [F, 3, 3] with the bounding box centred at the origin and the farthest corner at distance 1."""
    points = triangles.reshape(-1, 3)
    centred = triangles - (points.min(axis=0) + points.max(axis=0)) / 2
    return centred / np.linalg.norm(centred, axis=-1).max()


def flat_normals(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangles that have an area [G, 3, 3] and their unit normals [G, 3], by the right-hand rule."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.linalg.norm(normals, axis=1)
    solid = length > 1e-12 * max(length.max(), 1e-300)
    return triangles[solid], normals[solid] / length[solid, None]
