"""ResNet-18: public parameter names and counts, silent branches at the start, statistics over all ranks."""

from collections.abc import Sequence

import pytest
import torch

from tests.worldmodel.two_processes import TwoProcesses, assert_equals_one_process
from worldmodel.distributed import mean_over_ranks
from worldmodel.nn.resnet import BasicBlock, ResNet18, load_torchvision_weights


def images(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def torchvision_names() -> set[str]:
    """State of torchvision's resnet18, without fc."""

    def norm(prefix: str) -> set[str]:
        entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{prefix}.{e}" for e in entries}

    names = {"conv1.weight"} | norm("bn1")
    for stage in range(1, 5):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            names |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            names |= norm(f"{prefix}.bn1") | norm(f"{prefix}.bn2")
        if stage > 1:
            names |= {f"layer{stage}.0.downsample.0.weight"} | norm(f"layer{stage}.0.downsample.1")
    return names


def test_parameters_and_names_are_the_public_ones() -> None:
    model = ResNet18(stem="imagenet")
    assert parameters(model) == 11_176_512
    assert set(model.state_dict()) == torchvision_names()
    assert parameters(ResNet18(stem="cifar")) == 11_176_512 - 64 * 3 * (49 - 9)


@pytest.mark.parametrize(
    ("stem", "size", "map_size"), [("cifar", 32, 4), ("cifar", 28, 4), ("imagenet", 64, 2)]
)
def test_shapes(stem: str, size: int, map_size: int) -> None:
    model = ResNet18(stem=stem, width=8)
    assert model.embed_dim == 64
    assert model(images(2, size)).shape == (2, 64)
    assert model.feature_map(images(2, size)).shape == (2, 64, map_size, map_size)


def test_every_residual_branch_starts_silent() -> None:
    model = ResNet18(width=8)
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 8
    for block in blocks:
        assert not block.bn2.weight.any()
    x = images(2, 8, channels=8).relu()
    assert torch.equal(model.layer1(x), x)


def test_bytes_are_scaled() -> None:
    model = ResNet18(width=8).eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255))


def test_output_norm_centres_and_has_no_parameter() -> None:
    model = ResNet18(width=8, output_norm=True)
    out = model(images(16))
    torch.testing.assert_close(out.mean(0), torch.zeros(64), atol=1e-5, rtol=0)
    assert parameters(model) == parameters(ResNet18(width=8))


def test_public_weights_load() -> None:
    public, model = ResNet18(stem="imagenet", width=8), ResNet18(stem="imagenet", width=8, output_norm=True)
    state = {**public.state_dict(), "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    load_torchvision_weights(model, state)
    for name, value in public.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_weights_that_do_not_fit() -> None:
    state = ResNet18(stem="imagenet", width=8).state_dict()
    with pytest.raises(ValueError, match=r"1 tensors do not match .*conv1\.weight"):
        load_torchvision_weights(ResNet18(stem="cifar", width=8), state)
    with pytest.raises(ValueError, match=r"1 tensors do not match .*bn1\.bias"):
        load_torchvision_weights(
            ResNet18(stem="imagenet", width=8), {k: v for k, v in state.items() if k != "bn1.bias"}
        )


def test_unknown_stem() -> None:
    with pytest.raises(ValueError, match="cifar or imagenet"):
        ResNet18(stem="vgg")  # type: ignore[arg-type]


def _loss(own: Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    model = ResNet18(width=4, output_norm=True).double()
    for block in (m for m in model.modules() if isinstance(m, BasicBlock)):
        torch.nn.init.ones_(block.bn2.weight)
    out = torch.func.functional_call(model, {"conv1.weight": own[0]}, (x,))
    return mean_over_ranks((out.tanh() * torch.arange(1.0, 33)).sum(), out.numel())


def test_two_processes_equal_one(two_processes: TwoProcesses) -> None:
    x = images(6, 8).double()
    own = [torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
    assert_equals_one_process(
        two_processes, _loss, parameters=own, shares=x.split([2, 4]), joined=x, atol=1e-11
    )
