"""What study_act_jepa.py compares: studies (tasks, demonstrations, budgets) and arms (policies and their training)."""

from dataclasses import dataclass


def _metaworld(*tasks: str) -> tuple[str, ...]:
    return tuple(f"metaworld/{task}" for task in tasks)


HORIZON = 30  # states the probe reads; actions of a chunk
FOUR = _metaworld("button-press-topdown", "drawer-open", "door-open", "push")
EIGHT = (*FOUR, *_metaworld("window-open", "pick-place", "reach", "coffee-push"))
FIFTEEN = _metaworld(
    "button-press", "button-press-wall", "button-press-topdown", "button-press-topdown-wall",
    "coffee-button", "coffee-pull", "coffee-push", "drawer-open", "faucet-open", "faucet-close", "disassemble",
    "door-open", "door-close", "window-open", "window-close",
)  # fmt: skip
MEDIUM = (
    "size.dim=128", "size.hidden=512", "size.predictor_dim=64", "size.predictor_hidden=256",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Study:
    """Demonstrations, sizes and budgets of a study.

    Attributes:
        tasks: environments.
        training, heldout: episodes recorded per task, to train on and to measure errors and probes with.
        shown: how many of the training episodes arms learn from, one table for each.
        episodes: of closed loop per task.
        execute: actions of a chunk that are executed, one column for each.
        overrides: of train_policy.py.
        image_size: of pictures, or None for none.
        distractors: meaningless numbers in the state, which the probe does not read.
        budgets: of the probe, steps.
        transfer: steps of the action-transfer probe, 0 for none.
        steps: of training.
    """

    tasks: tuple[str, ...]
    training: int
    heldout: int
    shown: tuple[int, ...]
    episodes: int
    execute: tuple[int, ...] = (HORIZON,)
    overrides: tuple[str, ...] = ()
    image_size: int | None = None
    distractors: int = 0
    budgets: tuple[int, ...] = (250, 1000)
    transfer: int = 0
    steps: int = 500


STUDIES = {
    "smoke": Study(
        tasks=_metaworld("drawer-open"), training=10, heldout=5, shown=(10,), episodes=10, budgets=(250,), steps=400
    ),
    "small": Study(
        tasks=FOUR, training=10, heldout=5, shown=(10,), episodes=15, budgets=(250, 1000, 4000)
    ),
    "eight": Study(
        tasks=EIGHT, training=25, heldout=5, shown=(5, 10, 25), episodes=10, execute=(5, 10, 30), budgets=(1000,),
        transfer=500, steps=800, overrides=MEDIUM,
    ),
    "distracted": Study(
        tasks=FOUR, training=10, heldout=5, shown=(10,), episodes=15, execute=(10, 30), budgets=(1000,), distractors=16
    ),
    "small_image": Study(
        tasks=FOUR, training=10, heldout=5, shown=(10,), episodes=15, execute=(10, 30), budgets=(1000,), image_size=64,
        overrides=("observe.environment=false", "observe.image=true"),
    ),
    "paper15": Study(
        tasks=FIFTEEN, training=40, heldout=10, shown=(40,), episodes=20, execute=(10, 30), overrides=MEDIUM,
        budgets=(1000,), steps=2000,
    ),
    "paper15_image": Study(
        tasks=FIFTEEN, training=40, heldout=10, shown=(40,), episodes=20, execute=(10, 30), budgets=(1000,), steps=2000,
        image_size=64, overrides=(*MEDIUM, "observe.environment=false", "observe.image=true"),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How an arm is trained.

    Attributes:
        overrides: of train_policy.py.
        steps: how many times the steps of the study.
        first: overrides of a first stage, whose context encoder the arm starts from; its steps come on top.
        first_steps: how many times the steps of the study.
        action_free: also learns from the training episodes that are not shown, their actions hidden.
    """

    overrides: tuple[str, ...] = ()
    steps: float = 1.0
    first: tuple[str, ...] = ()
    first_steps: float = 0.0
    action_free: bool = False


_JEPA, _RAW = "policy=act_jepa", "policy=raw_state"
_PRETRAINING = (_JEPA, "policy.auxiliary.action_weight=0.0")
ARMS = {
    "act": Variant(overrides=("policy=act",)),
    "act_jepa": Variant(overrides=(_JEPA,)),
    "raw_state": Variant(overrides=(_RAW,)),
    # ACT-JEPA costs about twice as much per step (the table says how much): ACT given the same time.
    "act_matched": Variant(overrides=("policy=act",), steps=2.0),
    "bc": Variant(overrides=("policy=bc", "chunk=1")),
    "bc_chunk": Variant(overrides=("policy=bc",)),
    "flow": Variant(overrides=("policy=flow",)),
    "autoregressive": Variant(overrides=("policy=autoregressive", "chunk=15")),
    "act_cvae": Variant(overrides=("policy=act_cvae",)),
    "act_averaged": Variant(overrides=("policy=act", "weight_average=0.99")),
    "act_jepa_sigreg": Variant(overrides=(_JEPA, "policy.auxiliary.target=shared_latent")),
    "act_jepa_image": Variant(overrides=(_JEPA, "policy.auxiliary.target=image")),
    "act_jepa_0.1": Variant(overrides=(_JEPA, "policy.auxiliary.weight=0.1")),
    "act_jepa_paper_ema": Variant(overrides=(_JEPA, "policy.auxiliary.momentum=0.996")),
    "act_jepa_drop_first": Variant(overrides=(_JEPA, "policy.auxiliary.drop_first=true")),
    "act_jepa_causal": Variant(overrides=(_JEPA, "policy.auxiliary.causal=true")),
    # Its action decoder alone: an action of the chunk does not attend to later ones.
    "act_causal": Variant(overrides=("policy=act", "policy.auxiliary={causal: true}")),
    # Two stages, in all as many steps as the joint training.
    "two_stage_frozen": Variant(
        overrides=("policy=act", "start.frozen=true"), steps=0.5, first=_PRETRAINING, first_steps=0.5
    ),
    "two_stage": Variant(
        overrides=("policy=act", "start.frozen=false"), steps=0.5, first=_PRETRAINING, first_steps=0.5
    ),
    # Labelled and action-free episodes in equal parts, twice the steps: as much is seen of the labelled ones.
    "act_jepa_free": Variant(overrides=(_JEPA,), action_free=True, steps=2.0),
    "raw_state_free": Variant(overrides=(_RAW,), action_free=True, steps=2.0),
}
DEFAULT = ("act", "act_jepa", "raw_state", "act_matched", "bc")
