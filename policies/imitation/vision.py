"""Images to tokens: a convolutional network's last map, projected, with fixed positions."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from policies.imitation.map_tokens import MapTokens
from worldmodel.nn.encoders import build_encoder
from worldmodel.nn.mlp import as_unit_range


class SmallCNN(nn.Module):
    """Four 3x3 convolutions of stride 2 with GroupNorm and ReLU: images to maps of 1 / 16 of their size.

    GroupNorm and not BatchNorm: a policy is asked for single observations of one task, and trained on many of all.

    Args:
        width: channels of the first stage, a multiple of 8; each stage has twice as many, the last as the third.
    """

    def __init__(self, *, width: int = 16) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.GroupNorm(8, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.embed_dim = widths[-1]

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W], uint8 or 0..1, to maps [N, 4 width, H / 16, W / 16]."""
        return self.layers(as_unit_range(x))


class ImageTokens(MapTokens):
    """Tokens of images [N, 3, H, W] (ACT-JEPA's image path).

    Args:
        backbone: has `feature_map(images [N, 3, H, W]) -> [N, C, h, w]`, as `worldmodel.nn.resnet.ResNet18`, or is one
            with a `stages` module, as `worldmodel.nn.convnet.ConvNet`. What comes after the stages of an encoder is
            always frozen: it is not read, and DDP wants gradients of the rest.
        channels, dim, frozen: as of `MapTokens`.
    """

    def __init__(self, *, backbone: nn.Module, channels: int, dim: int, frozen: bool = False) -> None:
        if not (hasattr(backbone, "feature_map") or hasattr(backbone, "stages")):
            raise ValueError(
                f"{type(backbone).__name__} has neither feature_map nor stages: image tokens need a map of features"
            )
        if not hasattr(backbone, "feature_map"):
            backbone.requires_grad_(False)
            backbone.stages.requires_grad_(True)
        super().__init__(backbone=backbone, channels=channels, dim=dim, frozen=frozen)

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, 3, H, W] to the backbone's map [N, C, h, w]."""
        if hasattr(self.backbone, "feature_map"):
            return self.backbone.feature_map(x)  # type: ignore[operator]
        return self.backbone.stages(as_unit_range(x))  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An encoder of the world models as the image network of a policy; its last map is read, before any pooling.

    Attributes:
        encoder: convnet or resnet18, which have maps.
        embed_dim, options: as the world model was built with.
        image_size: (height, width) it was trained on, if it is another network for other sizes, as the convnet is.
        frozen: keep it as it is.
    """

    encoder: str
    embed_dim: int
    image_size: tuple[int, int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = True

    def tokens(self, image_size: tuple[int, int], dim: int) -> ImageTokens:
        """Untrained image tokens of width `dim` for images of a size (height, width); load the pretrained weights.

        Raises:
            ValueError: if the encoder has no map of features, or is for images of another size.
        """
        if self.encoder not in ("convnet", "resnet18"):
            raise ValueError(
                f"the pretrained encoder is a {self.encoder}, and a policy reads maps: pretrain with "
                f"world_model.encoder=convnet or resnet18"
            )
        if self.image_size is not None and tuple(self.image_size) != tuple(image_size):
            raise ValueError(
                f"the pretrained {self.encoder} was trained on images of {tuple(self.image_size)}, the policy sees "
                f"{tuple(image_size)}: record or pretrain at the other size"
            )
        made = build_encoder(self.encoder, (3, *image_size), dim=self.embed_dim, options=self.options)
        with torch.no_grad():
            probe = ImageTokens(backbone=made.eval(), channels=1, dim=dim)
            channels = probe.feature_map(torch.zeros(1, 3, *image_size)).shape[1]
        return ImageTokens(backbone=made.train(), channels=channels, dim=dim, frozen=self.frozen)
