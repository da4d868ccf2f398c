"""Checkpoints: bit-exact, whole or absent, strict, and never of a broken model."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from worldmodel.training.checkpoints import (
    CheckpointError,
    fingerprint,
    list_checkpoints,
    load_checkpoint,
    load_strict,
    restore,
    save_checkpoint,
)


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def adam(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def trained(steps: int = 3) -> tuple[nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = network()
    optimizer = adam(model)
    for seed in range(steps):
        step(model, optimizer, seed)
    return model, optimizer


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, number: int = 3, keep: int = 2
) -> Path:
    return save_checkpoint(
        folder, step=number, model=model, optimizer=optimizer, state={"max_steps": 9}, keep=keep
    )


def test_round_trip_is_bit_exact_and_training_goes_on_alike(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    assert path.name == "step_00000003"
    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 3
    assert checkpoint.state["max_steps"] == 9

    torch.manual_seed(99)
    other = network()
    other_optimizer = adam(other)
    restore(checkpoint, model=other, optimizer=other_optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].dtype == value.dtype
    before, after = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert before.keys() == after.keys()
    for index, entry in before.items():
        assert entry.keys() == after[index].keys()
        assert all(torch.equal(value, after[index][key]) for key, value in entry.items())
    for m, o in ((model, optimizer), (other, other_optimizer)):
        step(m, o, 50)
    assert torch.equal(model[0].weight, other[0].weight)


def test_untrained_frozen_and_tied_parameters(tmp_path: Path) -> None:
    def build() -> tuple[nn.ModuleDict, torch.optim.AdamW]:
        shared = nn.Linear(3, 3)
        model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "a": shared, "b": shared})
        model["frozen"].requires_grad_(False)
        return model, adam(model)

    model, optimizer = build()
    save(tmp_path, model, optimizer, number=0)
    optimizer.zero_grad()
    model["a"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = save(tmp_path, model, optimizer, number=1)
    other, other_optimizer = build()
    restore(load_checkpoint(path), model=other, optimizer=other_optimizer)
    assert torch.equal(other["b"].weight, model["a"].weight)
    assert other["a"].weight is other["b"].weight
    assert len(other_optimizer.state_dict()["state"]) == 2


def test_an_unfinished_checkpoint_is_ignored_and_removed(tmp_path: Path) -> None:
    model, optimizer = trained()
    first = save(tmp_path, model, optimizer, number=3)
    leftover = tmp_path / ".step_00000007.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (tmp_path / "step_00000009").mkdir()  # without state.json
    assert list_checkpoints(tmp_path) == [first]
    save(tmp_path, model, optimizer, number=7)
    assert not leftover.exists()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000003", "step_00000007"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    model, optimizer = trained()
    save(tmp_path, model, optimizer)
    step(model, optimizer, 8)
    path = save(tmp_path, model, optimizer)
    assert torch.equal(load_checkpoint(path).model["0.weight"], model[0].weight)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    model, optimizer = trained()
    for number in (2, 10, 100, 20, 99_999_999):
        save(tmp_path, model, optimizer, number=number, keep=keep)
    kept = [int(p.name.removeprefix("step_")) for p in list_checkpoints(tmp_path)]
    assert kept == [2, 10, 20, 100, 99_999_999][-keep:]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
def test_damage_names_the_folder(tmp_path: Path, file: str, damage: str) -> None:
    path = save(tmp_path, *trained())
    data = (path / file).read_bytes()
    if damage == "gone":
        (path / file).unlink()
    else:
        (path / file).write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match=r"step_00000003.*Delete this folder"):
        load_checkpoint(path)


def test_a_fingerprint_is_of_the_weights_alone(tmp_path: Path) -> None:
    model, optimizer = trained()
    first = fingerprint(save(tmp_path / "a", model, optimizer))
    assert first == fingerprint(save(tmp_path / "b", model, adam(model), number=4))
    step(model, optimizer, seed=9)
    assert first != fingerprint(save(tmp_path / "c", model, optimizer))
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        fingerprint(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, *trained())
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)


@pytest.mark.parametrize("where", ["parameter", "buffer", "moment"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_is_never_saved(tmp_path: Path, where: str, value: float) -> None:
    model, optimizer = trained()
    good = save(tmp_path, model, optimizer)
    with torch.no_grad():
        if where == "parameter":
            model[2].weight[0, 0] = value
        elif where == "buffer":
            model[1].running_var[0] = value
        else:
            optimizer.state[model[2].weight]["exp_avg"][0, 0] = value
    name = {"parameter": "2.weight", "buffer": "1.running_var", "moment": "2.weight.exp_avg"}[where]
    with pytest.raises(CheckpointError, match=f"NaN or inf.*'{name}'"):
        save(tmp_path, model, optimizer, number=4)
    assert list_checkpoints(tmp_path) == [good]


def test_loading_names_every_difference() -> None:
    tensors = dict(network().state_dict())
    tensors["extra"] = torch.zeros(1)
    del tensors["2.bias"]
    tensors["0.weight"] = torch.zeros(7, 3)
    with pytest.raises(CheckpointError) as caught:
        load_strict(network(), tensors, source="file.safetensors")
    for part in (
        "file.safetensors",
        "missing 2.bias",
        "unexpected extra",
        "0.weight is (7, 3), the model has (4, 3)",
    ):
        assert part in str(caught.value)


def test_a_long_list_of_differences_is_cut() -> None:
    with pytest.raises(CheckpointError, match="and 4 more"):
        load_strict(network(), {}, source="file")


def test_moments_of_a_parameter_that_is_not_trained_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, *trained())
    model = network()
    model[2].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"2\.(weight|bias)"):
        restore(load_checkpoint(path), model=model, optimizer=adam(model))
