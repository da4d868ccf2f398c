"""scripts/feature_files.py: what is read, and what is said about a file that cannot be."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def module(script, monkeypatch):
    """The script's module, reading 10 numbers at a time."""
    module = script("feature_files")
    monkeypatch.setattr(module, "_BLOCK", 10)
    return module


def array(*shape, dtype=np.float32):
    return (np.random.default_rng(0).normal(size=shape) * 5).astype(dtype)


def written(path, values, name="x"):
    """A file with these values, in the format of its suffix; .npz compressed or not by the file's name."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        (np.savez_compressed if "small" in path.name else np.savez)(path, **{name: values})
    else:
        save_file({name: torch.from_numpy(np.ascontiguousarray(values))}, path)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "small.npz", "a.safetensors"])
@pytest.mark.parametrize("shape", [(17, 3), (7, 4, 2), (1, 1), (3, 30)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64])
def test_all_rows_come_in_order_and_in_blocks(module, tmp_path, name, shape, dtype):
    values = array(*shape, dtype=dtype)
    file = module.open_features(written(tmp_path / name, values))
    assert file.shape == shape
    for _ in range(2):  # it can be read again
        blocks = list(file.blocks())
        assert torch.equal(torch.cat(blocks), torch.from_numpy(values))
    assert max(len(b) for b in blocks) == min(shape[0], max(1, 10 // np.prod(shape[1:])))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_column_order_other_byte_order_and_unsigned(module, tmp_path, name):
    values = array(9, 4)
    for stored in (np.asfortranarray(values), values.astype(">f4"), np.abs(values).astype(np.uint16)):
        file = module.open_features(written(tmp_path / name, stored))
        assert torch.equal(torch.cat(list(file.blocks())).double(), torch.from_numpy(stored.astype(float)))


def test_bf16(module, tmp_path):
    values = torch.from_numpy(array(9, 4)).bfloat16()
    save_file({"x": values}, tmp_path / "a.safetensors")
    assert torch.equal(torch.cat(list(module.open_features(tmp_path / "a.safetensors").blocks())), values)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_archives_with_several_tensors(module, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, first=array(5, 2), second=array(6, 2))
    else:
        save_file({"first": torch.zeros(5, 2), "second": torch.zeros(6, 2)}, path)
    assert module.open_features(path, key="second").shape == (6, 2)
    assert module.open_features(path, key="second").name == f"{path}:second"
    with pytest.raises(ValueError, match="choose a tensor with --key; it holds first, second"):
        module.open_features(path)
    with pytest.raises(ValueError, match="no tensor 'third'; it holds first, second"):
        module.open_features(path, key="third")
    empty = tmp_path / f"empty{suffix}"
    _ = np.savez(empty) if suffix == ".npz" else save_file({}, empty)
    with pytest.raises(ValueError, match="it holds nothing"):
        module.open_features(empty)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "small.npz", "a.safetensors"])
class TestFilesThatCannotBeRanked:
    def test_missing(self, module, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            module.open_features(tmp_path / name)

    @pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
    def test_cut_short(self, module, tmp_path, name, share):
        path = written(tmp_path / name, array(100, 5))
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"cannot be read, it is damaged or cut short"):
            list(module.open_features(path).blocks())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, module, tmp_path, name, bad):
        values = array(30, 4)
        values[[23, 17], 2] = bad
        with pytest.raises(ValueError, match=r"row 17 \(counted from 0\) holds NaN or infinity"):
            list(module.open_features(written(tmp_path / name, values)).blocks())

    @pytest.mark.parametrize("shape", [(5,), (2, 2, 2, 2)])
    def test_wrong_number_of_axes(self, module, tmp_path, name, shape):
        with pytest.raises(ValueError, match=r"expected \[N, D\] \(N samples\) or \[N, Q, D\]"):
            module.open_features(written(tmp_path / name, array(*shape)))

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4, 0, 3)])
    def test_empty(self, module, tmp_path, name, shape):
        with pytest.raises(ValueError, match="empty, shape"):
            module.open_features(written(tmp_path / name, np.zeros(shape, np.float32)))

    def test_no_real_numbers(self, module, tmp_path, name):
        with pytest.raises(ValueError, match="expected real numbers"):
            module.open_features(written(tmp_path / name, np.ones((3, 4), bool)))


def test_damage_inside_a_compressed_archive(module, tmp_path):
    path = written(tmp_path / "small.npz", array(4000, 5, dtype=np.int64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or cut short"):
        list(module.open_features(path).blocks())


def test_pickled_objects_are_not_loaded(module, tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        module.open_features(tmp_path / "a.npy")


def test_unknown_suffix(module, tmp_path):
    with pytest.raises(ValueError, match=r"ends in .npy, .npz, .safetensors, or the folder of a run"):
        module.open_features(tmp_path / "a.pt")
