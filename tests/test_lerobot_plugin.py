"""The LeRobot plugin: its package, its batches, and, where lerobot and the plugin are installed, the policy itself.

To run all of it (Python 3.12): pip install pytest -e .[lerobot] -e plugins/lerobot_policy_act_jepa
"""

import importlib.util
import math
import sys
import tomllib
from dataclasses import asdict, make_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.demonstrations import load_demonstrations
from policies.imitation.batches import ChunkBatch, ObservationError
from policies.imitation.build import Auxiliary
from policies.imitation.chunks import ChunkDataset, collate_chunks
from policies.imitation.interface import ChunkError, Interface
from policies.imitation.statistics import Statistics
from tests.policies.imitation.toys import TINY

REPOSITORY = Path(__file__).resolve().parents[1]
PLUGIN = REPOSITORY / "plugins" / "lerobot_policy_act_jepa"
SOURCE = PLUGIN / "src" / "lerobot_policy_act_jepa"
T, C, EXECUTE = 8, 6, 3
TASKS = ("reach", "push")
CAMERA = "observation.image"


def _installed(*names: str) -> bool:
    return {d.metadata["Name"] for d in metadata.distributions()} >= set(names)


needs_lerobot = pytest.mark.skipif(
    not _installed("lerobot", "lerobot_policy_act_jepa"),
    reason="lerobot is not installed, or the plugin is not: pip install -e plugins/lerobot_policy_act_jepa",
)


# The package, as LeRobot finds it by its names.


def test_package_is_found_by_name() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert project["name"] == SOURCE.name == "lerobot_policy_act_jepa"  # distribution, imported as it is
    found = {path.name for path in SOURCE.glob("*.py")}
    assert found >= {f"{part}_act_jepa.py" for part in ("configuration", "modeling", "processor")}


def test_versions_fit() -> None:
    """LeRobot is pinned to the minor version that was tried, the policies to those of this repository."""
    requirement = pytest.importorskip("packaging.requirements").Requirement
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    ours = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = {r.name: r.specifier for r in map(requirement, project["dependencies"])}
    assert "0.6.1" in pins["lerobot"]
    assert "0.7.0" not in pins["lerobot"]
    assert ours["version"] in pins["robot-worldmodel"]
    assert "0.2.0" not in pins["robot-worldmodel"]


# LeRobot's batches, without LeRobot.


@pytest.fixture(scope="module")
def columns() -> Any:
    """The class `Columns`, of a module that knows nothing of LeRobot."""
    spec = importlib.util.spec_from_file_location("act_jepa_batches", SOURCE / "batches.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module.Columns
    del sys.modules[spec.name]


def _interface(**changes: Any) -> Interface:
    return Interface(
        **{
            "state_dim": 3,
            "action_dim": 2,
            "chunk": C,
            "tasks": TASKS,
            "environment_dim": 4,
            "image_size": (32, 32),
            **changes,
        }
    )


def _batch(*, horizon: int = T, chunk: int = C, left: tuple[int, ...] = (9, 4)) -> dict[str, Any]:
    """What LeRobot collates: two stretches, `left` of whose steps lie in the episode."""
    draw = torch.Generator().manual_seed(0)
    ends = torch.tensor(left).unsqueeze(1)
    rows = len(left)
    return {
        "observation.state": torch.randn(rows, horizon, 3, generator=draw),
        "observation.state_is_pad": torch.arange(horizon) >= ends,
        "observation.environment_state": torch.randn(rows, horizon, 4, generator=draw),
        CAMERA: torch.rand(rows, horizon, 3, 32, 32, generator=draw),
        "action": torch.randn(rows, chunk, 2, generator=draw),
        "action_is_pad": torch.arange(chunk) >= ends,
        "task": ["push", "reach"],
        "index": torch.tensor([7, 3]),
    }


@pytest.mark.parametrize(("horizon", "chunk"), [(8, 6), (3, 6), (5, 5)])
def test_chunk_holds_the_stretch(columns: Any, horizon: int, chunk: int) -> None:
    given = _batch(horizon=horizon, chunk=chunk)
    made = columns(interface=_interface(), camera=CAMERA, image_stride=2).chunk(given)
    for mask, name in ((made.state_is_pad, "observation.state"), (made.action_is_pad, "action")):
        assert torch.equal(mask, given[f"{name}_is_pad"])
    assert torch.equal(made.image, given[CAMERA][:, 0])
    assert torch.equal(made.images, given[CAMERA][:, ::2])
    assert torch.equal(made.environment, given["observation.environment_state"][:, 0])
    assert made.task.tolist() == [1, 0]
    assert made.seeds == (7, 3)
    assert made.has_action.all()


def test_observation_is_the_current_step_with_or_without_time(columns: Any) -> None:
    read, given = columns(interface=_interface(), camera=CAMERA), _batch()
    now = {key: value[:, 0] if key.startswith("observation.") else value for key, value in given.items()}
    for one, other in zip(
        asdict(read.observation(given)).values(), asdict(read.observation(now)).values(), strict=True
    ):
        assert one is other is None or torch.equal(one, other)


def test_a_policy_of_one_task_ignores_names(columns: Any) -> None:
    read = columns(interface=_interface(tasks=("any",)), camera=CAMERA)
    assert read.observation({**_batch(), "task": ["", "something"]}).task.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.state": None}, "no 'observation.state', only"),
        ({"observation.environment_state": None}, "no 'observation.environment_state'"),
        ({CAMERA: None}, "no 'observation.image'"),
        ({"action_is_pad": None}, "delta timestamps"),
        ({"task": None}, "the name of the task of each"),
        ({"task": ["push"]}, "the name of the task of each"),
        ({"task": ["push", "fly"]}, "no task 'fly', only reach, push"),
        ({"observation.state": torch.zeros(2, 3)}, r"states are \[B, T, Ds\]"),
    ],
)
def test_unfit_batches_are_named(columns: Any, change: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in {**_batch(), **change}.items() if value is not None}
    with pytest.raises(ObservationError, match=message):
        columns(interface=_interface(), camera=CAMERA).chunk(given)


# The policy, in LeRobot.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three short episodes of two tasks."""
    from envs.lerobot import Feature, LeRobotWriter

    features = {
        "observation.state": Feature("float32", (3,), names=("x", "y", "z")),
        "observation.environment_state": Feature("float32", (4,), names=("a", "b", "c", "d")),
        CAMERA: Feature("image", (32, 32, 3), names=("height", "width", "channels")),
        "action": Feature("float32", (2,), names=("x", "y")),
    }
    rng, made = np.random.default_rng(0), tmp_path_factory.mktemp("plugin") / "tiny"
    with LeRobotWriter(made, features=features, fps=10, robot_type="arm") as writer:
        for number, steps in enumerate((9, 12, 7)):
            episode = {
                name: rng.integers(0, 256, (steps, *f.shape), dtype=np.uint8)
                if f.dtype == "image"
                else rng.normal(1.0, 2.0, (steps, *f.shape)).astype(np.float32)
                for name, f in features.items()
            }
            writer.append(episode, task=TASKS[number % 2])
    return made


def _config(**changes: Any) -> Any:
    """A config as the command line makes it."""
    import draccus
    from lerobot.configs import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    command = make_dataclass("Command", [("policy", PreTrainedConfig)])
    given = {
        "type": "act_jepa",
        "device": "cpu",
        "chunk_size": C,
        "n_action_steps": EXECUTE,
        "auxiliary.horizon": T,
        "training_steps": 5,
        **{f"sizes.{name}": value for name, value in asdict(TINY).items()},
        **changes,
    }
    return draccus.parse(command, args=[f"--policy.{name}={value}" for name, value in given.items()]).policy


class _Trained:
    """A policy of LeRobot's factories with its data and pipelines, trained as LeRobot's script does."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
        from lerobot.datasets.factory import resolve_delta_timestamps
        from lerobot.policies import make_policy, make_pre_post_processors

        torch.manual_seed(0)
        self.config = _config(**changes)
        meta = LeRobotDatasetMetadata("local/tiny", root=folder)
        stamps = resolve_delta_timestamps(self.config, meta)
        self.data = LeRobotDataset("local/tiny", root=folder, delta_timestamps=stamps)
        self.policy = make_policy(self.config, ds_meta=meta)
        self.before, self.after = make_pre_post_processors(self.config, dataset_stats=meta.stats)

    def batch(self, *frames: int) -> dict[str, Any]:
        return self.before(torch.utils.data.default_collate([self.data[i] for i in frames]))

    def train(self, steps: int = 5) -> list[dict[str, float]]:
        optimizer = self.config.get_optimizer_preset().build(self.policy.get_optim_params())
        said = []
        for step in range(steps):
            self.policy.train()
            loss, parts = self.policy.forward(self.batch(step, step + 9, step + 21))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.policy.update()
            said.append({"loss": float(loss.detach()), **parts})
        return said


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def trained(folder: Path, offline: None) -> _Trained:
    return _Trained(folder)


def _observation(trained: _Trained, *frames: int) -> dict[str, Any]:
    """As in a rollout: the current step and no labels."""
    batch = trained.batch(*frames)
    kept = {k: v[:, 0] for k, v in batch.items() if k in trained.config.input_features}
    return {**kept, "task": batch["task"]}


@needs_lerobot
def test_registered_under_its_name(offline: None) -> None:
    from lerobot.policies import get_policy_class

    config = _config(**{"auxiliary.target": "raw_state"})
    assert config.type == "act_jepa"
    assert config.auxiliary == Auxiliary(target="raw_state", horizon=T)
    assert config.sizes == TINY
    assert get_policy_class("act_jepa").name == "act_jepa"


@needs_lerobot
def test_sees_what_the_policies_of_this_repository_learn_from(trained: _Trained, folder: Path) -> None:
    """Reader, windows, masks and z-scores of LeRobot against those of `policies.imitation`, frame by frame."""
    shown = load_demonstrations(folder)
    ours = ChunkDataset(shown, tasks=trained.policy.columns.interface.tasks, chunk=C, horizon=T)
    unbounded = np.full(2, np.inf)
    statistics = Statistics.measured(shown, action_low=-unbounded, action_high=unbounded)
    frames = range(len(ours))
    expected: ChunkBatch = statistics.normalise_batch(collate_chunks([ours[i, i] for i in frames]))
    made = trained.policy.columns.chunk(trained.batch(*frames))
    assert torch.equal(made.is_pad, expected.is_pad)
    assert torch.equal(made.task, expected.task)
    assert made.seeds == expected.seeds
    assert expected.image is not None
    torch.testing.assert_close(made.image, expected.image / 255.0)
    for name in ("state", "environment", "action"):
        torch.testing.assert_close(getattr(made, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@needs_lerobot
@pytest.mark.parametrize("target", ["latent", "shared_latent", "raw_state", "image"])
def test_trains(folder: Path, offline: None, target: str) -> None:
    trained = _Trained(folder, **{"auxiliary.target": target, "auxiliary.image_stride": 4})
    teacher = [n for n, p in trained.policy.named_parameters() if not p.requires_grad]
    at_first = {n: p.clone() for n, p in trained.policy.named_parameters()}
    said = trained.train()
    assert all(math.isfinite(value) for step in said for value in step.values())
    assert {"loss", "loss_action", "loss_observation"} <= said[0].keys()
    assert bool(teacher) is (target in ("latent", "image"))
    moved = {n for n, p in trained.policy.named_parameters() if not torch.equal(p, at_first[n])}
    assert moved >= set(teacher)
    assert int(trained.policy.updates) == 5


@needs_lerobot
def test_loss_is_that_of_the_policy_within(trained: _Trained) -> None:
    trained.policy.train()
    batch = trained.batch(0, 11, 27)
    loss, parts = trained.policy.forward(batch)
    expected = trained.policy.policy.training_step(trained.policy.columns.chunk(batch), 0)
    assert torch.equal(loss, expected.total)
    assert parts["loss_action"] + parts["loss_observation"] == pytest.approx(float(loss), rel=1e-6)


@needs_lerobot
def test_padded_steps_do_not_count(trained: _Trained) -> None:
    batch = trained.batch(5, 18, 27)
    assert batch["action_is_pad"].any()
    other = dict(batch)
    for name in ("observation.state", "action"):
        noise = 100 * torch.randn(batch[name].shape, generator=torch.Generator().manual_seed(1))
        other[name] = torch.where(batch[f"{name}_is_pad"].unsqueeze(-1), noise, batch[name])
    with torch.no_grad():
        assert torch.allclose(trained.policy.forward(batch)[0], trained.policy.forward(other)[0], atol=1e-6)


@needs_lerobot
def test_momentum_rises_to_one_and_a_longer_run_is_told(
    trained: _Trained, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = [p for p in trained.policy.parameters() if not p.requires_grad]
    student = list(trained.policy.policy.network.act.context.transformer.parameters())
    steps, start = trained.config.training_steps, trained.config.auxiliary.momentum
    for p in student:
        p.data.add_(1.0)
    for done in range(steps + 2):
        momentum = min(1.0, start + (1 - start) * done / steps)
        expected = [t + (1 - momentum) * (s - t) for t, s in zip(teacher, student, strict=True)]
        trained.policy.update()
        for a, b in zip(teacher, expected, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-6, atol=1e-7)
    assert caplog.text.count("stands still from step 5 on") == 1


@needs_lerobot
def test_saved_and_loaded_it_acts_the_same(trained: _Trained, tmp_path: Path) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    trained.train()
    trained.policy.save_pretrained(tmp_path)
    trained.before.save_pretrained(tmp_path)
    trained.after.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert config.tasks == list(trained.policy.columns.interface.tasks)
    loaded = get_policy_class(config.type).from_pretrained(tmp_path, strict=True)
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    raw = torch.utils.data.default_collate([trained.data[3], trained.data[20]])
    expected = trained.after(trained.policy.predict_action_chunk(trained.before(raw)))
    assert torch.equal(after(loaded.predict_action_chunk(before(raw))), expected)
    assert expected.shape == (2, C, 2)
    assert int(loaded.updates) == 5


@needs_lerobot
def test_executes_so_many_actions_of_a_chunk(trained: _Trained) -> None:
    policy = trained.policy
    seen = [_observation(trained, i, i + 9) for i in range(2 * EXECUTE)]
    chunks = [policy.predict_action_chunk(seen[i]) for i in (0, EXECUTE)]
    policy.reset()
    acted = torch.stack([policy.select_action(observation) for observation in seen], dim=1)
    torch.testing.assert_close(acted, torch.cat([c[:, :EXECUTE] for c in chunks], dim=1))
    policy.reset()  # in the middle of a chunk, if there were one
    torch.testing.assert_close(policy.select_action(seen[EXECUTE]), chunks[1][:, 0])
    policy.reset()
    assert policy.select_action(_observation(trained, 2)).shape == (1, 2)
    with pytest.raises(ValueError, match="observations of 2 environments after 1: call reset"):
        policy.select_action(seen[0])


@needs_lerobot
def test_ensemble_is_that_of_lerobot(folder: Path, offline: None) -> None:
    from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

    trained = _Trained(folder, temporal_ensemble_coeff=0.1, n_action_steps=1)
    reference = ACTTemporalEnsembler(0.1, C)
    for i in range(C + 2):
        seen = _observation(trained, i, i + 9)
        expected = reference.update(trained.policy.predict_action_chunk(seen))
        torch.testing.assert_close(trained.policy.select_action(seen), expected)


@needs_lerobot
def test_unfit_observations_are_named(trained: _Trained) -> None:
    seen = _observation(trained, 0, 1)
    nan = {**seen, "observation.state": torch.full((2, 3), math.nan)}
    with pytest.raises(ObservationError, match="state of row 0 holds NaN"):
        trained.policy.predict_action_chunk(nan)
    with pytest.raises(ObservationError, match="no task 'fly'"):
        trained.policy.select_action({**seen, "task": ["fly", "fly"]})
    short = trained.batch(0, 1)
    short["action"], short["action_is_pad"] = short["action"][:, :4], short["action_is_pad"][:, :4]
    with pytest.raises(ChunkError, match="chunks of 4 actions"):
        trained.policy.forward(short)


@needs_lerobot
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_action_steps": 7}, r"n_action_steps lies in 1..chunk_size=6"),
        ({"temporal_ensemble_coeff": 0.01}, "set n_action_steps=1"),
        ({"n_obs_steps": 2}, "n_obs_steps=1"),
        ({"training_steps": 0}, "training_steps and auxiliary.horizon"),
        ({"auxiliary": Auxiliary(horizon=0)}, "training_steps and auxiliary.horizon"),
    ],
)
def test_unfit_settings_are_named(offline: None, changes: dict[str, Any], message: str) -> None:
    config_class = type(_config())
    with pytest.raises(ValueError, match=message):
        config_class(**{"device": "cpu", "chunk_size": C, "n_action_steps": EXECUTE, **changes})


@needs_lerobot
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.state": None}, "needs 'observation.state' among the inputs"),
        (
            {"observation.images.wrist": (3, 32, 32)},
            "sees one camera, the data have .*--policy.input_features",
        ),
        ({CAMERA: (1, 32, 32)}, r"must hold RGB images"),
    ],
)
def test_unfit_features_are_named(
    trained: _Trained, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    config = trained.config
    for name, shape in change.items():
        config.input_features.pop(name, None)
        if shape is not None:
            config.input_features[name] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)
    with pytest.raises(ValueError, match=message):
        type(trained.policy)(config)
