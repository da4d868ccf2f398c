"""The small convolutional encoder: size, shapes, place-awareness, errors."""

import pytest
import torch

from worldmodel.nn.convnet import ConvNet


@pytest.mark.parametrize("size", [32, 64, 65, 96])
def test_parameters_and_shapes(size: int) -> None:
    model = ConvNet(image_size=(size, size))
    assert (
        sum(p.numel() for p in model.parameters()) == 1_437_728
    )  # 387,936 in convolutions, 960 in norms, 4,096 x 256 + 256
    assert model(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, model.embed_dim)


def test_oblong_images_and_other_channels() -> None:
    model = ConvNet(image_size=(32, 48), in_channels=5, width=4, embed_dim=7)
    assert model(torch.zeros(3, 5, 32, 48)).shape == (3, 7)


def test_bytes_are_scaled() -> None:
    model = ConvNet(image_size=(32, 32), width=4).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255))


def test_the_embedding_knows_where_a_dot_is() -> None:
    torch.manual_seed(0)
    model = ConvNet(image_size=(32, 32), in_channels=1, width=8).eval()
    dots = torch.zeros(2, 1, 32, 32)
    dots[0, :, 8, 8], dots[1, :, 24, 24] = (
        1.0,
        1.0,
    )  # one shape at two places: the same under a global average
    with torch.no_grad():
        a, b = model(dots) - model(torch.zeros(1, 1, 32, 32))
    assert float(torch.cosine_similarity(a, b, dim=0)) < 0.9


def test_output_norm_centres() -> None:
    model = ConvNet(image_size=(16, 16), width=4, embed_dim=8)
    out = model(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(out.mean(0), torch.zeros(8), atol=1e-5, rtol=0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        ConvNet(image_size=(8, 32))
    with pytest.raises(ValueError, match=r"\[N, 3, 32, 32\]"):
        ConvNet(image_size=(32, 32), width=4)(torch.zeros(1, 3, 32, 48))
