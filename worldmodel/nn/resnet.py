"""ResNet-18 without its classifier (arXiv 1512.03385), with the BatchNorm of all ranks and public parameter names."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from worldmodel.nn.batch_norm import SyncedBatchNorm1d, SyncedBatchNorm2d
from worldmodel.nn.mlp import as_unit_range


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the last BatchNorm scale starts at zero, so the branch starts silent."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = SyncedBatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = SyncedBatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), SyncedBatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.downsample(x))


class ResNet18(nn.Module):
    """Images to embeddings of 8 x width numbers; 11,176,512 parameters with the ImageNet stem at width 64.

    Parameters are named as in torchvision. The embedding is an average after a ReLU: without `output_norm` it has no
    negative entry, and cosines between embeddings start near 1.

    Args:
        stem: "cifar" is a 3x3 convolution of stride 1, for images of up to 96 pixels; "imagenet" a 7x7 of stride 2 and
            a max-pool.
        in_channels: of the image.
        width: channels of the first stage.
        output_norm: end in a BatchNorm without affine, which centres the embedding.
    """

    def __init__(
        self,
        *,
        stem: Literal["cifar", "imagenet"] = "cifar",
        in_channels: int = 3,
        width: int = 64,
        output_norm: bool = False,
    ) -> None:
        super().__init__()
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        else:
            raise ValueError(f"the stem of a ResNet is cifar or imagenet, got {stem!r}")
        self.bn1 = SyncedBatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.embed_dim = 8 * width
        self.output_norm = SyncedBatchNorm1d(self.embed_dim, affine=False) if output_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W], uint8 or float, to the last map [N, 8 width, H / 8, W / 8] (ImageNet stem: / 32)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(as_unit_range(x)))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to embeddings [N, 8 width]; uint8 is scaled to 0..1, floats are taken as they are."""
        return self.output_norm(self.feature_map(x).mean((2, 3)))


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride=stride), BasicBlock(channels, channels, stride=1)
    )


def load_torchvision_weights(model: ResNet18, state: Mapping[str, torch.Tensor]) -> None:
    """Take over a public ResNet-18 state dict; its classifier is left out, everything else must match.

    Public weights expect float images less the ImageNet mean over its standard deviation, not 0..1.

    Raises:
        ValueError: if names or shapes differ, naming them.
    """
    own = model.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    expected = {name: value for name, value in own.items() if not name.startswith("output_norm.")}
    wrong = sorted(given.keys() ^ expected.keys())
    wrong += [n for n in given.keys() & expected.keys() if given[n].shape != expected[n].shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors do not match this ResNet-18 (stem, width, in_channels?): {', '.join(wrong[:5])}"
        )
    model.load_state_dict(own | given)
