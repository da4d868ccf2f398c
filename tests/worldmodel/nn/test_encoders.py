"""Every image encoder plugs into the world model."""

import pytest
import torch
from torch import nn

from worldmodel.batches import LatentState
from worldmodel.nn.convnet import ConvNet
from worldmodel.nn.resnet import ResNet18
from worldmodel.nn.vit import ViT
from worldmodel.protocols import WorldModel
from worldmodel.seq_jepa import SeqWorldModel

ENCODERS = {
    "resnet": lambda: ResNet18(width=8, output_norm=True),
    "convnet": lambda: ConvNet(image_size=(32, 32), width=8, embed_dim=48),
    "vit": lambda: ViT(image_size=(32, 32), patch_size=(8, 8), dim=32, depth=2, heads=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_plugs_into_the_world_model(name: str) -> None:
    torch.manual_seed(0)
    encoder: nn.Module = ENCODERS[name]()
    model = SeqWorldModel(
        encoder=encoder, embed_dim=encoder.embed_dim, action_dim=2, action_embed=16, hidden=32
    ).eval()
    assert isinstance(model, WorldModel)
    pixels = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    z = model.encode(pixels)
    assert z.shape == (2, 3, encoder.embed_dim)
    torch.testing.assert_close(z[:, 1], encoder(pixels[:, 1]))  # each from its own observation alone
    imagined = model.rollout(LatentState(latents=z, actions=torch.zeros(2, 2, 2)), torch.zeros(2, 4, 2))
    assert imagined.shape == (2, 4, encoder.embed_dim)
