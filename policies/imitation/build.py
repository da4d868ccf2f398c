"""The policies by name and size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from policies.imitation.act import ACT, StyleEncoder
from policies.imitation.act_jepa import ACTJEPA
from policies.imitation.autoregressive import AutoregressiveTransformer
from policies.imitation.bc import BehaviourCloning
from policies.imitation.context import ContextEncoder, StateTransformer
from policies.imitation.flow import FlowPolicy
from policies.imitation.interface import Interface
from policies.imitation.lidar_tokens import LidarBackbone, LidarTokens
from policies.imitation.policy import ImitationPolicy
from policies.imitation.statistics import Statistics
from policies.imitation.targets import (
    ImageTargets,
    LatentTargets,
    RawStateTargets,
    SharedLatentTargets,
)
from policies.imitation.vision import Backbone, ImageTokens, SmallCNN
from worldmodel.nn.decoder import QueryDecoder
from worldmodel.nn.resnet import ResNet18
from worldmodel.regularizers import SIGReg

Name = Literal["act", "act_cvae", "act_jepa", "bc", "autoregressive", "flow"]
TargetName = Literal["latent", "shared_latent", "raw_state", "image"]
NAMES: tuple[Name, ...] = ("act", "act_cvae", "act_jepa", "bc", "autoregressive", "flow")
TARGETS: tuple[TargetName, ...] = ("latent", "shared_latent", "raw_state", "image")


BACKBONES: dict[str, type[Backbone | LidarBackbone]] = {"image": Backbone, "lidar": LidarBackbone}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths and depths; the defaults are those of the paper (arXiv 2501.14622).

    Attributes:
        dim, heads, hidden: of context encoder and action decoder.
        encoder_layers, decoder_layers: theirs.
        predictor_dim, predictor_layers, predictor_hidden: of the auxiliary branch, with the same number of heads.
        dropout: everywhere.
        vision: "small", a CNN with GroupNorm of `vision_width` channels in its first stage, or "resnet18".
    """

    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 4
    decoder_layers: int = 1
    predictor_dim: int = 128
    predictor_layers: int = 4
    predictor_hidden: int = 512
    dropout: float = 0.1
    vision: Literal["small", "resnet18"] = "resnet18"
    vision_width: int = 64


SMALL = Sizes(
    dim=64,
    heads=4,
    hidden=256,
    encoder_layers=2,
    predictor_dim=32,
    predictor_layers=2,
    predictor_hidden=128,
    vision="small",
    vision_width=16,
)


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """The auxiliary branch of ACT-JEPA.

    Attributes:
        target: what is predicted.
        weight: lambda.
        action_weight: of the actions; 0 for the first of two stages.
        horizon: T, steps; the data set's.
        momentum: of the moving average at the start; see `momentum_of_run`. Not of shared or raw targets.
        drop_first: leave out the current step.
        sigreg_weight: of shared targets.
        image_stride: of image targets; the data set's.
        causal: target encoder, predictor and action decoder do not look ahead. The last holds for an ACT too: what is
            left of ACT-JEPA when its other parts are dropped.
    """

    target: TargetName = "latent"
    weight: float = 1.0
    action_weight: float = 1.0
    horizon: int = 30
    momentum: float = 0.996
    drop_first: bool = False
    sigreg_weight: float = 0.05
    image_stride: int = 10
    causal: bool = False


def build_network(
    name: Name,
    *,
    interface: Interface,
    sizes: Sizes,
    auxiliary: Auxiliary | None = None,
    backbone: Backbone | LidarBackbone | None = None,
) -> nn.Module:
    """The network of a policy.

    Args:
        auxiliary: of act_jepa; of the others only its `causal` is read.
        backbone: the image encoder, in place of the one of the sizes, or the encoder of LiDAR sweeps.

    Raises:
        ValueError: naming what is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"the policy is one of {', '.join(NAMES)}, got {name!r}")
    vision = sensor_tokens(interface, sizes, backbone)
    layer: dict[str, Any] = {"heads": sizes.heads, "hidden": sizes.hidden, "dropout": sizes.dropout}
    if name == "bc":
        return BehaviourCloning(
            interface=interface, dim=sizes.dim, hidden=sizes.hidden, dropout=sizes.dropout, vision=vision
        )
    if name == "autoregressive":
        if isinstance(vision, LidarTokens):
            raise ValueError("an autoregressive policy sees no LiDAR sweeps: choose another policy")
        return AutoregressiveTransformer(
            interface=interface, dim=sizes.dim, layers=sizes.encoder_layers + 1, vision=vision, **layer
        )
    auxiliary = auxiliary or Auxiliary()
    transformer = StateTransformer(
        state_dim=interface.state_dim,
        tasks=len(interface.tasks),
        dim=sizes.dim,
        layers=sizes.encoder_layers,
        causal=auxiliary.causal,
        **layer,
    )
    context = ContextEncoder(
        transformer=transformer, environment_dim=interface.environment_dim, vision=vision
    )
    shape = {"action_dim": interface.action_dim, "chunk": interface.chunk}
    if name == "flow":
        return FlowPolicy(context=context, layers=sizes.encoder_layers, **shape, **layer)
    decoder = QueryDecoder(
        queries=interface.chunk,
        out_dim=interface.action_dim,
        dim=sizes.dim,
        layers=sizes.decoder_layers,
        causal=auxiliary.causal,
        **layer,
    )
    style = None
    if name == "act_cvae":
        style = StyleEncoder(
            state_dim=interface.state_dim,
            action_dim=interface.action_dim,
            dim=sizes.dim,
            layers=sizes.encoder_layers,
            **layer,
        )
    act = ACT(context=context, decoder=decoder, style=style)
    return act if name != "act_jepa" else _with_predictor(act, interface, sizes, auxiliary)


def _with_predictor(act: ACT, interface: Interface, sizes: Sizes, auxiliary: Auxiliary) -> ACTJEPA:
    if auxiliary.target not in TARGETS:
        raise ValueError(f"the target is one of {', '.join(TARGETS)}, got {auxiliary.target!r}")
    queries, out_dim = auxiliary.horizon, sizes.dim
    targets: nn.Module
    if auxiliary.target == "latent":
        targets = LatentTargets(act.context.transformer, momentum=auxiliary.momentum)
    elif auxiliary.target == "shared_latent":
        targets = SharedLatentTargets(
            sizes.dim, sigreg=SIGReg(num_slices=256), weight=auxiliary.sigreg_weight
        )
    elif auxiliary.target == "raw_state":
        targets, out_dim = RawStateTargets(), interface.state_dim
    else:
        if not isinstance(act.context.vision, ImageTokens):
            raise ValueError("image targets need a policy that sees images")
        stride = auxiliary.image_stride
        targets = ImageTargets(act.context.vision, stride=stride, momentum=auxiliary.momentum)
        queries = -(-auxiliary.horizon // stride)
    predictor = QueryDecoder(
        queries=queries,
        out_dim=out_dim,
        dim=sizes.predictor_dim,
        layers=sizes.predictor_layers,
        heads=sizes.heads,
        hidden=sizes.predictor_hidden,
        dropout=sizes.dropout,
        memory_dim=sizes.dim,
        causal=auxiliary.causal,
    )
    return ACTJEPA(
        act=act,
        predictor=predictor,
        targets=targets,
        weight=auxiliary.weight,
        action_weight=auxiliary.action_weight,
        drop_first=auxiliary.drop_first,
    )


def sensor_tokens(
    interface: Interface, sizes: Sizes, backbone: Backbone | LidarBackbone | None
) -> ImageTokens | LidarTokens | None:
    """What turns the image or the sweep of an observation into tokens; None where the policy sees neither.

    Raises:
        ValueError: if the backbone is for something else than what the policy sees, or is missing.
    """
    if interface.points:
        if not isinstance(backbone, LidarBackbone):
            raise ValueError(
                "LiDAR sweeps are read by a sparse encoder: add backbone.run=RUN, of pretrain_lidar.py"
            )
        return backbone.tokens(sizes.dim)
    if interface.image_size is not None:
        if isinstance(backbone, LidarBackbone):
            raise ValueError("the backbone reads LiDAR sweeps, and this policy sees images")
        return image_tokens(sizes) if backbone is None else backbone.tokens(interface.image_size, sizes.dim)
    if backbone is not None:
        raise ValueError(
            "a backbone reads images or LiDAR sweeps, and this policy sees neither: add observe.image=true or "
            "observe.points=true"
        )
    return None


def described_backbone(told: Mapping[str, Any] | None) -> Backbone | LidarBackbone | None:
    """The backbone of a JSON description; `kind` is image, where nothing is said, or lidar.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if told is None:
        return None
    given = dict(told)
    kind = given.pop("kind", "image")
    if kind not in BACKBONES:
        raise ValueError(f"the kind of a backbone is {' or '.join(BACKBONES)}, got {kind!r}")
    return BACKBONES[kind](**given)


def backbone_kind(backbone: Backbone | LidarBackbone) -> str:
    """As `described_backbone` reads it."""
    return next(kind for kind, made in BACKBONES.items() if isinstance(backbone, made))


def image_tokens(sizes: Sizes) -> ImageTokens:
    """New image tokens of the given sizes."""
    if sizes.vision == "small":
        small = SmallCNN(width=sizes.vision_width)
        return ImageTokens(backbone=small, channels=small.embed_dim, dim=sizes.dim)
    if sizes.vision != "resnet18":
        raise ValueError(f"the image network is small or resnet18, got {sizes.vision!r}")
    resnet = ResNet18(stem="imagenet", width=sizes.vision_width)
    return ImageTokens(backbone=resnet, channels=resnet.embed_dim, dim=sizes.dim)


def build_policy(
    name: Name,
    *,
    interface: Interface,
    sizes: Sizes = SMALL,
    auxiliary: Auxiliary | None = None,
    statistics: Statistics | None = None,
    backbone: Backbone | LidarBackbone | None = None,
) -> ImitationPolicy:
    """A policy; without `statistics` one that must be loaded from a checkpoint before it works.

    Initial weights come from torch's global generator: seed it before.
    """
    empty = Statistics(
        state_dim=interface.state_dim,
        action_dim=interface.action_dim,
        environment_dim=interface.environment_dim,
    )
    network = build_network(name, interface=interface, sizes=sizes, auxiliary=auxiliary, backbone=backbone)
    return ImitationPolicy(network=network, statistics=statistics or empty, interface=interface)
