"""The arms of the seq-JEPA study: data, models and their training, shared by study_seq_jepa.py and its tests."""

import json
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from envs.episodes import ActionSpec, Episode
from envs.views.digits import digits
from envs.views.objects import ObjectSpec, objects
from envs.views.rotations import PosedViews, distinct_views, relative_quaternions
from worldmodel.baselines import SelfDistillation, SimCLR, TwoViewPretraining, VICReg
from worldmodel.episodes import EpisodeDataset, collate_episodes, episode_batches
from worldmodel.lejepa import LeJEPA
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.regularizers import SIGReg
from worldmodel.seq_jepa import SeqJEPA, SeqWorldModel
from worldmodel.targets import EMATarget, SharedTarget
from worldmodel.training import RunFolder, TrainerConfig, fit
from worldmodel.training.checkpoints import load_checkpoint, load_strict, write_json
from worldmodel.training.provenance import provenance
from worldmodel.training.schedules import WarmupCosine

Split = Literal["train", "validation", "test"]
VALIDATION = 10  # one in so many items of the training side is watched during training, and never trained on
EMA_START = 0.99
LIMITS = {"objects30": 30.0, "objects90": 90.0}  # degrees about each axis
RENDERED = Path("data/objects")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the model and its training; the defaults are those of the smallest tier.

    Attributes:
        widths: of the encoder, the last one being that of the embedding.
        steps, batch_size, max_lr, warmup, weight_decay: of AdamW with a cosine to zero.
        action_embed, layers, heads, mlp_ratio, hidden, token_std: of the world model.
        sigreg_weight: lambda of the arm without a teacher.
    """

    widths: tuple[int, ...] = (256, 256, 128)
    steps: int = 3000
    batch_size: int = 64
    max_lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    action_embed: int = 32
    layers: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    hidden: int = 512
    token_std: float = 0.02
    sigreg_weight: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One column of the study.

    Attributes:
        title: of the column.
        condition: where the action enters.
        views: observed views in training, M_tr.
        sigreg: no teacher; SIGReg instead.
        trained: False: the model as drawn.
        baseline: name of a two-view baseline instead of a sequence model.
    """

    title: str
    condition: Literal["both", "predictor", "aggregator", "none"] = "both"
    views: int = 3
    sigreg: bool = False
    trained: bool = True
    baseline: str | None = None

    def objects_per_step(self, sequences: int) -> int:
        """Two views of twice as many objects are as many images as the four of a sequence."""
        return sequences if self.baseline is None else 2 * sequences


ARMS = {
    "random": Arm(title="random init", trained=False),
    "act": Arm(title="M_tr=3, act"),
    "no_act": Arm(title="M_tr=3, no act", condition="none"),
    "act_m1": Arm(title="M_tr=1, act", views=1),
    "predictor": Arm(title="action to predictor only", condition="predictor"),
    "aggregator": Arm(title="action to aggregator only", condition="aggregator"),
    "sigreg": Arm(title="act, SIGReg, no teacher", sigreg=True),
    "simclr": Arm(title="SimCLR", baseline="simclr"),
    "vicreg": Arm(title="VICReg", baseline="vicreg"),
    "byol": Arm(title="BYOL", baseline="byol"),
    "conditional_byol": Arm(title="conditional BYOL", baseline="conditional_byol"),
    "jepa": Arm(title="JEPA, no action, no aggregator", baseline="jepa"),
    "random_no_act": Arm(title="random init, no act", condition="none", trained=False),
}


class Prepared:
    """Posed views with the action of every pair of views at hand: the same episodes as the source's, drawn faster."""

    def __init__(self, posed: PosedViews) -> None:
        self.posed, rotations = posed, posed.rotations
        shape = (*rotations.shape[:2], rotations.shape[1], 4)
        first, second = (np.broadcast_to(r, shape) for r in (rotations[:, :, None], rotations[:, None]))
        self.pairs = relative_quaternions(first, second)

    @property
    def action(self) -> ActionSpec:
        return self.posed.action

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.posed.observation_shape

    @property
    def views(self) -> int:
        return self.posed.views.shape[1]

    @property
    def classes(self) -> int:
        return int(self.posed.classes.max()) + 1

    def __len__(self) -> int:
        return len(self.posed)

    def sample(self, item: int, *, steps: int, generator: np.random.Generator) -> Episode:
        """`steps` distinct views of an object and the rotations between them."""
        chosen = distinct_views(self.views, steps=steps, item=item, generator=generator)
        return Episode(
            observations=self.posed.views[item, chosen],
            actions=self.pairs[item, chosen[:-1], chosen[1:]],
            item=item,
            labels={"class": self.posed.classes[item], "rotation": self.posed.rotations[item, chosen]},
        )


@lru_cache(maxsize=4)
def source(data: str, split: Split) -> Prepared:
    """One part of a data set by name; its views are the same for every seed of a run.

    Raises:
        ValueError: for an unknown name.
    """
    side: Literal["train", "test"] = "test" if split == "test" else "train"
    if data == "digits":
        items = digits(split=side)
    elif data in LIMITS:
        spec = ObjectSpec(limits=(LIMITS[data],) * 3)
        items = objects(split=side, spec=spec, pool=2, folder=RENDERED, progress=False)
    else:
        raise ValueError(f"data is digits, objects30 or objects90, got {data!r}")
    if side == "train":  # sorted by class, so every class gives its share
        watched = np.arange(len(items)) % VALIDATION == 0
        items = items.subset(watched if split == "validation" else ~watched)
    return Prepared(items)


def world_model(arm: Arm, *, source: Prepared, scale: Scale) -> SeqWorldModel:
    """The model of an arm, freshly drawn. All arms draw the encoder first: equal seeds give equal encoders."""
    in_dim = torch.Size(source.observation_shape).numel()
    return SeqWorldModel(
        encoder=MLPEncoder(in_dim, scale.widths),
        embed_dim=scale.widths[-1],
        action_dim=source.action.dim,
        action_embed=scale.action_embed,
        condition=arm.condition,
        hidden=scale.hidden,
        layers=scale.layers,
        heads=scale.heads,
        mlp_ratio=scale.mlp_ratio,
        dropout=0.0,
        token_std=scale.token_std,
    )


def task(arm: Arm, *, source: Prepared, scale: Scale, seed: int) -> nn.Module:
    """The training task of an arm, its weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arm.baseline is not None:
            return two_view_task(arm.baseline, source=source, scale=scale)
        model = world_model(arm, source=source, scale=scale)
    if arm.sigreg:
        lejepa = LeJEPA(sigreg=SIGReg(seed=seed), weight=scale.sigreg_weight)
        return SeqJEPA(model=model, target=SharedTarget(), lejepa=lejepa, views=arm.views)
    target = EMATarget(model.encoder, momentum=EMA_START, schedule="cosine", copy_buffers=True)
    return SeqJEPA(model=model, target=target, views=arm.views)


def two_view_task(name: str, *, source: Prepared, scale: Scale) -> TwoViewPretraining:
    """A baseline around the same encoder; projectors of three layers as wide as the predictor of the world model."""
    encoder, dim = MLPEncoder(torch.Size(source.observation_shape).numel(), scale.widths), scale.widths[-1]
    widths = (scale.hidden,) * 3
    if name == "simclr":
        return TwoViewPretraining(encoder=encoder, method=SimCLR(dim, widths=widths))
    if name == "vicreg":
        return TwoViewPretraining(encoder=encoder, method=VICReg(dim, widths=widths))
    action = source.action.dim if name == "conditional_byol" else None
    method = SelfDistillation(
        encoder,
        dim,
        widths=None if name == "jepa" else widths,
        hidden=scale.hidden,
        action_dim=action,
        action_embed=scale.action_embed,
        momentum=EMA_START,
    )
    return TwoViewPretraining(encoder=encoder, method=method)


def trained(
    arm: Arm, *, data: str, scale: Scale, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The task of an arm after training, and where and how it was trained. Continues what the folder holds.

    The checkpoint and `training.json` in the folder are taken if they are of the same settings.
    """
    items = source(data, "train")
    model = task(arm, source=items, scale=scale, seed=seed)
    if not arm.trained:
        return model.eval(), {"trained_at": provenance()}
    config = TrainerConfig(
        max_steps=scale.steps,
        batch_size=arm.objects_per_step(scale.batch_size),
        schedule=WarmupCosine(max_lr=scale.max_lr, warmup=scale.warmup),
        beta2=0.999,
        weight_decay=scale.weight_decay,
        decay_vectors=False,
        device="cpu",
        eval_every=max(1, scale.steps // 30),
        checkpoint_every=max(1, scale.steps // 6),
        keep_checkpoints=1,
        seed=seed,
        progress=False,
    )
    run = RunFolder(folder)
    run.open(
        {"data": data, "arm": asdict(arm), "scale": asdict(scale), "seed": seed, "validation": VALIDATION},
        resume=True,
        volatile=("arm.title",),
    )
    done = folder / "training.json"
    if done.is_file():
        latest = run.latest_checkpoint()
        if latest is None:
            raise FileNotFoundError(
                f"{folder} says it is trained but holds no checkpoint: delete it to train anew"
            )
        load_strict(model, load_checkpoint(latest).model, source=str(latest))
        return model.eval(), json.loads(done.read_text())
    stretch = 2 if arm.baseline else arm.views + 1
    began = time.perf_counter()
    result = fit(
        model,
        dataset=EpisodeDataset(items, steps=stretch),
        collate=collate_episodes,
        heldout=episode_batches(
            source(data, "validation"), steps=stretch, count=1000, batch_size=250, seed=1
        ),
        run=run,
        config=config,
        device=torch.device("cpu"),
    )
    if result.interrupted:
        raise SystemExit(f"stopped at step {result.step} of {result.max_steps}; the same command continues")
    record = {"train_s": time.perf_counter() - began, "trained_at": provenance()}
    write_json(done, record)
    return model.eval(), record
