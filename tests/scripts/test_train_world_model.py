"""The command that trains world models: a run of seconds, its resume, and what a planner loads of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from envs.two_rooms import TwoRoomsEpisodes
from tests.scripts.conftest import ROOT
from worldmodel.batches import LatentState
from worldmodel.training.run_folder import RunFolderError

Script = Callable[[str], ModuleType]
TINY = [
    "episodes.episodes=40", "episodes.length=33", "trainer.max_steps=4", "trainer.batch_size=8",
    "trainer.heldout_episodes=16", "trainer.eval_every=2", "trainer.checkpoint_every=2", "trainer.device=cpu",
    "trainer.progress=false",
]  # fmt: skip


def settings(folder: Path, *overrides: str, fixed: Sequence[str] = TINY) -> dict:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train_world_model", overrides=[*fixed, f"run.dir={folder}", *overrides])
    made = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize("model", ["dynamics", "seq_jepa"])
def test_train_stop_resume_and_load(model: str, tmp_path: Path, script: Script) -> None:
    train, world_models = script("train_world_model"), script("world_models")
    options = [f"world_model={model}"]
    assert train.run(settings(tmp_path / "whole", *options)) == 0
    assert train.run(settings(tmp_path / "parts", *options, "trainer.stop_after=2")) == 130
    assert train.run(settings(tmp_path / "parts", *options, "resume=true")) == 0
    whole, parts = (world_models.load_world_model(tmp_path / name) for name in ("whole", "parts"))
    for (name, a), b in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (whole.block, whole.window) == (4, 1 if model == "dynamics" else 3)
    episodes = world_models.source(whole.settings["episodes"], "test")
    z = whole.model.encode(torch.rand(2, 1, *episodes.observation_shape))
    start = LatentState(latents=z, actions=torch.zeros(2, 0, episodes.action.dim))
    assert whole.model.rollout(start, torch.zeros(2, 3, episodes.action.dim)).shape[:2] == (2, 3)


def test_an_inverse_dynamics_head_on_a_world_model(tmp_path: Path, script: Script) -> None:
    train, world_models = script("train_world_model"), script("world_models")
    for seed in (0, 1):
        assert train.run(settings(tmp_path / str(seed), f"seed={seed}", "trainer.max_steps=1")) == 0
    head = ["world_model=inverse_dynamics", f"world_model.of={tmp_path / '0'}", "world_model.max_distance=3"]
    assert train.run(settings(tmp_path / "head", *head)) == 0
    model, other = (world_models.load_world_model(tmp_path / name) for name in ("0", "1"))
    loaded = world_models.load_inverse_dynamics(tmp_path / "head", model)
    z = model.model.encode(torch.rand(3, 1, 2, 65, 65))[:, 0]
    assert loaded(z, z).shape == (3, 8)
    with pytest.raises(RunFolderError, match="was trained on"):
        world_models.load_inverse_dynamics(tmp_path / "head", other)
    with pytest.raises(RunFolderError, match="is no run of world_model=inverse_dynamics"):
        world_models.load_inverse_dynamics(tmp_path / "0", model)
    with pytest.raises(RunFolderError, match="name the world model it reads"):
        world_models.load_world_model(tmp_path / "head")
    with pytest.raises(ValueError, match="with the same block"):
        train.run(settings(tmp_path / "other", *head, "episodes.block=2"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve episodes of Two Rooms as a LeRobot data set."""
    lerobot = pytest.importorskip("envs.lerobot")
    root = tmp_path_factory.mktemp("recording") / "set"
    rooms = TwoRoomsEpisodes(split="train", episodes=12, length=9)
    lerobot.write_episodes(rooms, root, steps=9, fps=10, task="walk", episodes=12, seed=0)
    return root


def test_a_recording_is_a_source(recording: Path, tmp_path: Path, script: Script) -> None:
    train, world_models = script("train_world_model"), script("world_models")
    options = [
        "episodes=lerobot",
        f"episodes.root={recording}",
        "episodes.block=2",
        "world_model.observations=3",
    ]
    made = settings(tmp_path / "run", *options, fixed=[o for o in TINY if not o.startswith("episodes.")])
    sides = {split: world_models.source(made["episodes"], split) for split in ("train", "selection")}
    assert {split: len(side) for split, side in sides.items()} == {"train": 11, "selection": 1}
    drawn = [
        side.sample(i, steps=3, generator=np.random.default_rng(0)).item
        for side in sides.values()
        for i in range(len(side))
    ]
    assert drawn == list(range(12))
    assert len(world_models.source({**made["episodes"], "episodes": 4}, "train")) == 4
    assert train.run(made) == 0
    loaded = world_models.load_world_model(tmp_path / "run")
    assert (loaded.block, loaded.actions) == (2, 4)
    with pytest.raises(ValueError, match="has no split 'test'"):
        world_models.source(made["episodes"], "test")


@pytest.mark.parametrize("episodes", ["point_maze", "push_t"])
def test_states_need_a_perceptron(episodes: str, tmp_path: Path, script: Script) -> None:
    world_models = script("world_models")
    options = [f"episodes={episodes}", "episodes.episodes=2", "episodes.length=60"]
    made = settings(tmp_path, *options)
    source = world_models.source(made["episodes"], "train")
    with pytest.raises(ValueError, match=r"add world_model\.encoder=mlp"):
        world_models.task(made, source)
    made = settings(tmp_path, *options, "world_model=dynamics_state")
    drawn = source.sample(0, steps=5, generator=np.random.default_rng(0))
    task = world_models.task(made, source)
    assert task.model.encode(torch.from_numpy(drawn.observations)[None].float()).shape == (1, 5, 64)


@pytest.mark.parametrize("encoder", ["patch_mlp", "convnet", "resnet18", "mlp"])
def test_every_image_encoder_plugs_in(encoder: str, tmp_path: Path, script: Script) -> None:
    world_models = script("world_models")
    vector = ["world_model.predictor=residual", "world_model.embed_dim=64"]
    made = settings(tmp_path, f"world_model.encoder={encoder}", *vector)
    task = world_models.task(made, world_models.source(made["episodes"], "train"))
    assert task.model.encode(torch.zeros(2, 2, 2, 65, 65, dtype=torch.uint8)).shape == (2, 2, 64)


def test_a_folder_of_something_else(tiny_run: Path, script: Script) -> None:
    with pytest.raises(RunFolderError, match="does not describe a world model"):
        script("world_models").load_world_model(tiny_run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("world_model.encoder=vgg", "conv with encoder=patch_map"),
        ("world_model.predictor=linear", "world_model.predictor is"),
        ("world_model.predictor=residual", "conv with encoder=patch_map"),
        ("world_model.name=rssm", "world_model is"),
        ("episodes.name=kitchen", "episodes is"),
    ],
)
def test_unknown_names(override: str, message: str, tmp_path: Path, script: Script) -> None:
    made, world_models = settings(tmp_path, override), script("world_models")

    def build() -> None:
        world_models.task(made, world_models.source(made["episodes"], "train"))

    with pytest.raises(ValueError, match=message):
        build()
