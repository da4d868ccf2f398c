"""The settings of ACT-JEPA in LeRobot; the defaults are those of the paper (arXiv 2501.14622)."""

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_act_jepa.batches import ACTION, ENVIRONMENT, STATE, Columns
from policies.imitation.build import Auxiliary, Sizes
from policies.imitation.interface import Interface


@PreTrainedConfig.register_subclass("act_jepa")
@dataclass
class ACTJEPAConfig(PreTrainedConfig):
    """`--policy.type=act_jepa`.

    Attributes:
        chunk_size: C, actions predicted at once.
        n_action_steps: of them, how many are executed before the policy is asked again.
        temporal_ensemble_coeff: ask at every step and execute the weighted mean of all predictions for it (ACT, arXiv
            2304.13705: 0.01); None for no ensemble.
        tasks: names; filled from the data set. A policy of one task ignores the names it is given.
        sizes: of the network.
        auxiliary: its `horizon` T is how many states a training sample holds.
        training_steps: those of the whole run, over which the momentum of the moving average rises to 1 and the
            learning rate falls to 0. LeRobot does not tell a policy `--steps`: give both the same.
        warmup: share of the steps.
    """

    chunk_size: int = 30
    n_action_steps: int = 30
    temporal_ensemble_coeff: float | None = None
    tasks: list[str] | None = None
    sizes: Sizes = field(default_factory=Sizes)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    training_steps: int = 100_000
    warmup: float = 0.04
    optimizer_lr: float = 6e-4
    optimizer_weight_decay: float = 0.1
    optimizer_grad_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps lies in 1..chunk_size={self.chunk_size}, got {self.n_action_steps}: lower it, or "
                f"raise chunk_size"
            )
        if self.temporal_ensemble_coeff is not None and self.n_action_steps != 1:
            raise ValueError(
                f"a temporal ensemble asks at every step: set n_action_steps=1, got {self.n_action_steps}"
            )
        if self.n_obs_steps != 1:
            raise ValueError(f"the policy sees the current step alone: n_obs_steps=1, got {self.n_obs_steps}")
        if self.training_steps < 1 or not 0 <= self.warmup < 1 or self.auxiliary.horizon < 1:
            raise ValueError(
                f"training_steps and auxiliary.horizon are at least 1 and warmup is a share, got "
                f"{self.training_steps}, {self.auxiliary.horizon} and {self.warmup}"
            )

    def validate_features(self) -> None:
        """Raises ValueError unless there are a state, an action and at most one camera of RGB images."""
        if self.robot_state_feature is None or self.action_feature is None:
            raise ValueError(
                f"ACT-JEPA needs {STATE!r} among the inputs and {ACTION!r} as output, got "
                f"{sorted(self.input_features or {})} and {sorted(self.output_features or {})}"
            )
        cameras = self.image_features
        if len(cameras) > 1:
            raise ValueError(
                f"ACT-JEPA sees one camera, the data have {', '.join(sorted(cameras))}: choose one by naming all "
                f"inputs in --policy.input_features"
            )
        for name, camera in cameras.items():
            if len(camera.shape) != 3 or camera.shape[0] != 3:
                raise ValueError(f"{name!r} must hold RGB images (3, height, width), got {camera.shape}")

    @property
    def columns(self) -> Columns:
        """What the policy reads of a batch, for features that were validated."""
        assert self.robot_state_feature is not None
        assert self.action_feature is not None
        inputs = self.input_features or {}
        environment = inputs.get(ENVIRONMENT)
        camera = next(iter(self.image_features), None)
        interface = Interface(
            state_dim=self.robot_state_feature.shape[0],
            action_dim=self.action_feature.shape[0],
            chunk=self.chunk_size,
            tasks=tuple(self.tasks or ["any task"]),
            environment_dim=None if environment is None else environment.shape[0],
            image_size=None if camera is None else (inputs[camera].shape[1], inputs[camera].shape[2]),
        )
        stride = self.auxiliary.image_stride if self.auxiliary.target == "image" else None
        return Columns(interface=interface, camera=camera, image_stride=stride)

    @property
    def observation_delta_indices(self) -> list[int]:
        """0..T-1. LeRobot loads all observations at these steps; the policy sees the first, the rest are targets."""
        return list(range(self.auxiliary.horizon))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Linear warm-up, then cosine to 0; shrinks with the run if that is shorter than `training_steps`."""
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=0.0,
            num_warmup_steps=round(self.warmup * self.training_steps),
            num_decay_steps=self.training_steps,
        )
