"""Rendered objects: geometry of the pictures against projected meshes, the removed shortcuts, storage."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.episodes import check_episodes
from envs.views import objects as module
from envs.views import rendering
from envs.views.meshes import flat_normals, read_obj, to_unit_sphere
from envs.views.objects import MESHES, NUISANCES, ObjectSpec, objects, render
from envs.views.rendering import CAMERA_DISTANCE, MARGIN, Look, Studio, pybullet_data

SMALL = ObjectSpec(classes=("bunny", "random_300"), train=2, test=1, views=5, size=32)
TETRAHEDRON = np.array([[0, 0, 0.0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[
    [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
]


@pytest.mark.parametrize("name", ["bunny", "mug", "laikago_shank"])
def test_silhouette_is_the_projection_of_the_turned_mesh(name: str) -> None:
    mesh, size = to_unit_sphere(read_obj(pybullet_data() / MESHES[name])), 96
    scale = size / 2 / np.tan(np.arcsin(MARGIN / CAMERA_DISTANCE))
    with Studio() as studio:
        studio.place(mesh)
        for quaternion in Rotation.random(4, rng=0).as_quat():
            image = studio.picture(quaternion, size=size, look=Look())
            rows, columns = np.nonzero(image.any(axis=0))
            x, y, z = Rotation.from_quat(quaternion).apply(mesh.reshape(-1, 3)).T
            right, down = scale * x / (CAMERA_DISTANCE - z), -scale * y / (CAMERA_DISTANCE - z)
            found = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
            expected = size / 2 + np.array([right.min(), right.max(), down.min(), down.max()])
            np.testing.assert_allclose(found, expected, atol=1.6)


def test_light_comes_from_where_the_look_says() -> None:
    half = np.sqrt(1 / 3)
    corners = half * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    cube = corners[[[4, 6, 7], [4, 7, 5], [0, 1, 3], [0, 3, 2], [2, 3, 7], [2, 7, 6]]]
    cube = np.concatenate([cube, corners[[[0, 4, 5], [0, 5, 1], [1, 5, 7], [1, 7, 3]]]])
    with Studio() as studio:
        studio.place(cube)
        turned = Rotation.from_euler("y", 45, degrees=True).as_quat()  # two upright faces, left and right
        brightness = {
            phi: studio.picture(turned, size=40, look=Look(theta=np.pi / 3, phi=phi))[0, 20, [12, 28]]
            for phi in (-np.pi / 4, np.pi / 4)
        }
    left_lit, right_lit = brightness[-np.pi / 4].astype(int), brightness[np.pi / 4].astype(int)
    assert left_lit[0] > left_lit[1] + 30
    assert right_lit[1] > right_lit[0] + 30


def test_source_without_shortcuts() -> None:
    source = objects(spec=SMALL, pool=2, progress=False)
    check_episodes(source, steps=4)
    assert source.observation_shape == (1, 16, 16)
    assert source.action.dim == 4
    assert len(source) == 4
    assert source.classes.tolist() == [0, 0, 1, 1]
    assert not source.latents
    corners = source.views[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()  # black background
    # one albedo: the brightest pixels of two classes agree, whatever the object
    peaks = source.views.reshape(4, -1).max(axis=1)
    assert peaks.max() - peaks.min() < 0.15
    assert 0.4 < peaks.min() < 1


def test_splits_hold_different_instances_of_the_same_classes() -> None:
    train, test = (objects(split=s, spec=SMALL, progress=False) for s in ("train", "test"))
    assert test.classes.tolist() == [0, 1]
    for view in test.rotations.reshape(-1, 4):
        assert np.abs(train.rotations - view).max(axis=-1).min() > 1e-3


def test_limits_bound_the_angles() -> None:
    limits = (30.0, 0.0, 10.0)
    made = render(replace(SMALL, limits=limits, views=40))
    angles = Rotation.from_quat(made.rotations.reshape(-1, 4)).as_euler("xyz", degrees=True)
    assert (np.abs(angles) <= np.add(limits, 1e-3)).all()
    assert (np.abs(angles).max(axis=0) > 0.9 * np.array(limits) - 1e-9).all()
    assert (made.rotations[..., 3] >= 0).all()


def test_nuisances_change_colours_but_no_rotation() -> None:
    spec = replace(SMALL, nuisances=tuple(NUISANCES))
    source = objects(spec=spec, acted=("background_hue", "light_hue"), progress=False)
    check_episodes(source, steps=3)
    assert source.observation_shape == (3, 32, 32)
    assert source.action.dim == 6
    np.testing.assert_array_equal(source.rotations, objects(spec=SMALL, progress=False).rotations)
    assert sorted(source.latents) == [
        "albedo_hue", "background_hue", "light_hue", "light_phi", "light_theta",
    ]  # fmt: skip
    corner = source.views[..., 0, 0]
    assert len({tuple(c) for c in corner.reshape(-1, 3).tolist()}) > 15
    assert source.latents["light_theta"].max() <= np.pi / 4


def test_one_nuisance_leaves_the_others_alone() -> None:
    source = objects(spec=replace(SMALL, nuisances=("albedo",)), progress=False)
    assert sorted(source.latents) == ["albedo_hue"]
    assert not source.views[..., 0, 0].any()


@pytest.mark.slow  # starts interpreters
def test_rendering_is_the_same_for_any_number_of_processes() -> None:
    spec = replace(SMALL, train=1, views=2)
    one, two = render(spec), render(spec, processes=2)
    np.testing.assert_array_equal(one.views, two.views)
    np.testing.assert_array_equal(one.rotations, two.rotations)


def test_rendered_sets_are_stored_under_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = objects(spec=SMALL, folder=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    assert path.name == f"objects-{SMALL.key}.npz"
    with monkeypatch.context() as patch:
        patch.setattr(module, "render", lambda *a, **k: pytest.fail("rendered again"))
        again = objects(spec=SMALL, folder=tmp_path, progress=False)
    np.testing.assert_array_equal(first.views, again.views)
    np.testing.assert_array_equal(first.rotations, again.rotations)
    others = [replace(SMALL, seed=1), replace(SMALL, limits=(30.0, 30.0, 30.0)), replace(SMALL, views=6)]
    assert len({spec.key for spec in (SMALL, *others)}) == 4
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"objects-.*npz is damaged .*delete it"):
        objects(spec=SMALL, folder=tmp_path, progress=False)


def test_meshes_are_centred_scaled_and_stretched() -> None:
    mesh = to_unit_sphere(TETRAHEDRON + 5)
    assert np.isclose(np.linalg.norm(mesh, axis=-1).max(), 1)
    np.testing.assert_allclose(mesh.reshape(-1, 3).min(axis=0), -mesh.reshape(-1, 3).max(axis=0))
    solid, normals = flat_normals(np.concatenate([TETRAHEDRON, np.zeros((1, 3, 3))]))
    assert len(solid) == 4  # a triangle without an area is dropped
    expected = [[0, 0, -1], [0, -1, 0], [-1, 0, 0], np.full(3, np.sqrt(1 / 3))]
    np.testing.assert_allclose(normals, expected, atol=1e-12)


def test_obj_files(tmp_path: Path) -> None:
    path = tmp_path / "square.obj"
    path.write_text(
        "# square\nmtllib x\nv 0 0 0\nv 1 0 0\nvn 0 0 1\nv 1 1 0\nv 0 1 0\nf 1/1/1 2//1 3 4\nf -4 -3 -2\n"
    )
    triangles = read_obj(path)
    np.testing.assert_array_equal(triangles[0], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(triangles[1], [[0, 0, 0], [1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(triangles[2], triangles[0])
    for text in ("v 0 0\n", "v 0 0 0\nf 1 2 3\n", "f a b c\n", "v 1 2 x\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"square.obj is no Wavefront OBJ file"):
            read_obj(path)
    for text in ("", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"square.obj"):
            read_obj(path)
    with pytest.raises(FileNotFoundError, match="no mesh at"):
        read_obj(tmp_path / "missing.obj")


def test_errors_name_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in {
        ("classes", ("unicorn",)): r"no mesh for the classes \['unicorn'\].*bunny",
        ("nuisances", ("fog",)): r"unknown nuisances \['fog'\].*background",
        ("views", 0): "at least one class",
        ("classes", ()): "at least one class",
        ("limits", (90.0, 200.0, 0.0)): "within 0 and 180",
        ("stretch", -0.1): "stretch is not negative",
    }.items():
        with pytest.raises(ValueError, match=message):
            ObjectSpec(**dict([wrong]))
    with pytest.raises(ValueError, match="a pool of 5 does not divide"):
        objects(spec=SMALL, pool=5)
    with pytest.raises(ValueError, match="train or test"):
        objects(split="val")  # type: ignore[arg-type]
    with Studio() as studio, pytest.raises(RuntimeError, match="place an object"):
        studio.picture(np.array([0, 0, 0, 1]), size=8, look=Look())
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"robot-worldmodel\[views\]"):
        render(SMALL)
