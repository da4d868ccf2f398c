"""Encoders of single observations by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from worldmodel.nn.convnet import ConvNet
from worldmodel.nn.mlp import MLPEncoder
from worldmodel.nn.patch_map import PatchMap
from worldmodel.nn.patch_mlp import PatchMLP
from worldmodel.nn.resnet import ResNet18
from worldmodel.nn.vit import ViT

IMAGE_ENCODERS = ("patch_map", "patch_mlp", "convnet", "resnet18", "vit")


def build_encoder(name: str, shape: Sequence[int], *, dim: int, options: Mapping[str, Any]) -> nn.Module:
    """An encoder of observations of a shape, [C, H, W] for images, to embeddings of `dim` numbers.

    Raises:
        ValueError: for an unknown name, a state given to an image encoder, or a width the encoder cannot have.
    """
    options = dict(options)
    if name == "mlp":
        widths = (*options.pop("widths", (256, 256)), dim)
        return MLPEncoder(torch.Size(shape).numel(), widths, **options)
    if name not in IMAGE_ENCODERS:
        raise ValueError(f"world_model.encoder is {', '.join(IMAGE_ENCODERS)} or mlp, got {name!r}")
    if len(shape) != 3:
        raise ValueError(
            f"encoder {name} reads images, these observations are {tuple(shape)}: add world_model.encoder=mlp"
        )
    size, channels = (shape[1], shape[2]), shape[0]
    if name == "patch_map":
        return PatchMap(image_size=size, in_channels=channels, embed_dim=dim, **options)
    if name == "patch_mlp":
        return PatchMLP(image_size=size, in_channels=channels, embed_dim=dim, **options)
    if name == "convnet":
        return ConvNet(image_size=size, in_channels=channels, embed_dim=dim, **options)
    if name == "vit":
        return ViT(image_size=size, in_channels=channels, dim=dim, **options)
    if dim % 8:
        raise ValueError(f"embed_dim of resnet18 is a multiple of 8, got {dim}")
    return ResNet18(in_channels=channels, width=dim // 8, **options)
