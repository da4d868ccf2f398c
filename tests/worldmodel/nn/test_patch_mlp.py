"""The patch encoder: a hand-made image reaches the right patch, sizes, errors."""

import pytest
import torch

from worldmodel.nn.patch_mlp import PatchMLP


def encoder() -> PatchMLP:
    torch.manual_seed(0)
    return PatchMLP(image_size=(10, 15), in_channels=2, channels=4, hidden=8, embed_dim=3)


def test_every_pixel_belongs_to_the_patch_it_lies_in() -> None:
    made = encoder().eval()
    seen: list[torch.Tensor] = []
    made.patches.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = torch.arange(2 * 10 * 15, dtype=torch.float32).reshape(1, 2, 10, 15)
    made(image)
    tokens = seen[0].reshape(2, 3, 2, 5, 5)
    for row in range(2):
        for column in range(3):
            expected = image[0, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            assert torch.equal(tokens[row, column], expected)


def test_output_bytes_and_sizes() -> None:
    made = PatchMLP(image_size=(65, 65), in_channels=2)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(0.71e6, rel=0.02)
    images = torch.randint(0, 256, (7, 2, 65, 65), dtype=torch.uint8)
    z = made.train()(images)
    assert z.shape == (7, made.embed_dim)
    torch.testing.assert_close(z.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    made.eval()
    torch.testing.assert_close(made(images), made(images.float() / 255))


def test_errors() -> None:
    with pytest.raises(ValueError, match="do not tile"):
        PatchMLP(image_size=(12, 15))
    with pytest.raises(ValueError, match="expected images"):
        encoder()(torch.zeros(1, 2, 15, 10))
