"""Spatial latents: places keep their place, the rule of motion is the same everywhere, errors."""

import pytest
import torch

from worldmodel.nn.patch_map import ConvPredictor, PatchMap


def test_a_code_sees_its_patch_and_no_other() -> None:
    torch.manual_seed(0)
    encoder = PatchMap(image_size=(15, 20), in_channels=2, embed_dim=4).eval()
    image = torch.rand(1, 2, 15, 20)
    before = encoder(image)
    assert before.shape == (1, 4, 3, 4)
    image[0, :, 5:10, 15:20] += 1  # patch (1, 3)
    changed = (encoder(image) != before).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_equal_patches_have_equal_codes_wherever_they_are() -> None:
    torch.manual_seed(0)
    encoder = PatchMap(image_size=(10, 10), in_channels=1, embed_dim=3).eval()
    codes = encoder(torch.rand(1, 1, 5, 5).repeat(1, 1, 2, 2))[0].flatten(1)
    torch.testing.assert_close(codes, codes[:, :1].expand(-1, 4))


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_the_predictor_moves_with_its_map_and_reaches_as_far_as_it_has_layers(layers: int) -> None:
    torch.manual_seed(0)
    predictor = ConvPredictor(3, 2, hidden=5, layers=layers).double()
    z, action = torch.zeros(1, 3, 15, 15).double(), torch.randn(1, 2).double()
    ground = predictor(z, action)
    z[0, :, 7, 7] = 1.0
    reached = ((predictor(z, action) - ground).abs() > 1e-12).any(dim=1)[0].nonzero()
    assert int((reached - 7).abs().max()) == layers
    shifted = predictor(z.roll((1, -1), (2, 3)), action)
    inner = slice(layers + 1, 15 - layers - 1)
    torch.testing.assert_close(
        shifted[..., inner, inner], predictor(z, action).roll((1, -1), (2, 3))[..., inner, inner]
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match="do not tile"):
        PatchMap(image_size=(12, 15))
    with pytest.raises(ValueError, match="expected images"):
        PatchMap(image_size=(10, 15))(torch.zeros(1, 3, 15, 10))
    with pytest.raises(ValueError, match="at least 2"):
        ConvPredictor(3, 2, layers=1)
