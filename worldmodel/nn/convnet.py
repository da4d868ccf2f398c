"""A small strided convolutional encoder for images of about 32 to 96 pixels."""

import math

import torch
from torch import nn

from worldmodel.nn.batch_norm import SyncedBatchNorm1d, SyncedBatchNorm2d
from worldmodel.nn.mlp import as_unit_range

POOLED = 4
WIDTHS = (1, 2, 4, 8)  # channels of the stages, in multiples of the first


class ConvNet(nn.Module):
    """Four stages of 3x3 convolution, BatchNorm, ReLU, each twice as wide, then one linear layer.

    Stages have stride 2 until the map is at most 8 pixels wide. It is then averaged to 4 x 4 and flattened before the
    linear layer, so that the embedding knows where things are: a global average would not. 1.44 M parameters at the
    defaults, for every image size.

    Args:
        image_size: (height, width) in pixels; at least 16 each.
        in_channels: of the image.
        width: channels of the first stage.
        embed_dim: D.
        output_norm: end in a BatchNorm without affine, which centres the embedding.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        width: int = 32,
        embed_dim: int = 256,
        output_norm: bool = True,
    ) -> None:
        super().__init__()
        if min(image_size) < 16:
            raise ValueError(
                f"the convolutional encoder needs images of at least 16 pixels, got {image_size}"
            )
        self.image_size, self.in_channels, self.embed_dim = tuple(image_size), in_channels, embed_dim
        layers: list[nn.Module] = []
        channels, size = in_channels, max(image_size)
        for multiple in WIDTHS:
            stride, out = (2, multiple * width) if size > 8 else (1, multiple * width)
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), SyncedBatchNorm2d(out), nn.ReLU()]
            channels, size = out, math.ceil(size / stride)
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(channels * POOLED**2, embed_dim)
        self.output_norm = SyncedBatchNorm1d(embed_dim, affine=False) if output_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to embeddings [N, D]; uint8 is scaled to 0..1, floats are taken as they are.

        Raises:
            ValueError: if the images have another shape than the encoder was built for.
        """
        if x.shape[1:] != (self.in_channels, *self.image_size):
            raise ValueError(
                f"expected images [N, {self.in_channels}, {self.image_size[0]}, {self.image_size[1]}], got "
                f"{tuple(x.shape)}"
            )
        maps = self.stages(as_unit_range(x).contiguous(memory_format=torch.channels_last))
        return self.output_norm(self.head(nn.functional.adaptive_avg_pool2d(maps, POOLED).flatten(1)))
