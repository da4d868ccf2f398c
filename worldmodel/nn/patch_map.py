"""Spatial latents: a code for every patch of an image, and a predictor that knows only neighbourhoods.

What happens where is local: whether a dot passes depends on the wall beside it. A map of codes with a convolutional
predictor learns that rule once, for all places and layouts; a vector has to learn it for each.
"""

import torch
from torch import nn

from worldmodel.nn.batch_norm import SyncedBatchNorm1d
from worldmodel.nn.dynamics import Workspace
from worldmodel.nn.mlp import patch_grid, patches_of


class PatchMap(nn.Module):
    """Linear-BN-ReLU-Linear-BN on every patch: images to maps of codes.

    Args:
        image_size: (height, width) in pixels, multiples of `patch`.
        in_channels: of the image.
        patch: side of a patch.
        hidden: width of the perceptron.
        embed_dim: C, channels of the map.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        patch: int = 5,
        hidden: int = 64,
        embed_dim: int = 16,
    ) -> None:
        super().__init__()
        self.grid = patch_grid(image_size, patch)
        self.in_channels, self.patch, self.embed_dim = in_channels, patch, embed_dim
        self.layers = nn.Sequential(
            nn.Linear(in_channels * patch**2, hidden, bias=False),
            SyncedBatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, embed_dim),
            SyncedBatchNorm1d(embed_dim, affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C_in, H, W] to maps [N, C, H / patch, W / patch]; uint8 is scaled to 0..1.

        Raises:
            ValueError: if the images have another shape than the encoder was built for.
        """
        tiles = patches_of(x, channels=self.in_channels, grid=self.grid, patch=self.patch)
        codes = self.layers(tiles)
        return codes.reshape(len(x), *self.grid, -1).permute(0, 3, 1, 2)


class ConvPredictor(nn.Module):
    """z' = z + f([z, a]) on maps: 3x3 convolutions over the codes and the action, which every place is told.

    Args:
        dim: C, channels of the map.
        action_dim: A.
        hidden: channels in between.
        layers: 3x3 convolutions: an action reaches as many patches in every direction.
    """

    def __init__(self, dim: int, action_dim: int, *, hidden: int = 32, layers: int = 3) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"the predictor needs at least 2 convolutions, got {layers}")
        self.read = nn.Conv2d(dim, hidden, 3, padding=1)
        self.told = nn.Linear(action_dim, hidden)
        body: list[nn.Module] = []
        for _ in range(layers - 2):
            body += [nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*body, nn.Conv2d(hidden, dim, 3, padding=1))

    def forward(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Next maps [N, C, h, w] of maps and actions [N, A]."""
        told = self.told(action)[:, :, None, None]
        return z + self.body(torch.relu(self.read(z.contiguous(memory_format=torch.channels_last)) + told))

    @torch.no_grad()
    def imagine(
        self, z: torch.Tensor, actions: torch.Tensor, workspace: Workspace | None = None
    ) -> torch.Tensor:
        """Maps [B, K, H, C, h, w] that K candidates [B, K, H, A] lead to from maps [B, C, h, w]; in new memory."""
        batch, count = actions.shape[:2]
        first, *later = actions.flatten(0, 1).unbind(1)
        read = self.read(z.contiguous(memory_format=torch.channels_last)).repeat_interleave(count, 0)
        now = z.repeat_interleave(count, 0) + self.body(read.add_(self.told(first)[:, :, None, None]).relu_())
        maps = [now]
        for action in later:
            maps.append(now := self(now, action))
        return torch.stack(maps, dim=1).unflatten(0, (batch, count))
