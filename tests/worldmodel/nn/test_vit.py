"""Vision transformer: attention against torch's own, ordered attention, dropped tokens that leave no trace."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.nn.transformer import Attention, Block, Packed, init_weights, sincos_positions
from worldmodel.nn.vit import ViT


def vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    options = {"image_size": (16, 24), "patch_size": (4, 4), "dim": 16, "depth": 2, "heads": 2}
    return ViT(**(options | changes))


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, heads=3), torch.randn(2, 5, 12)
    allowed = (torch.rand(2, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    expected, _ = F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3,
        12,
        3,
        attention.qkv.weight,
        attention.qkv.bias,
        None,
        None,
        False,
        0.0,
        attention.proj.weight,
        attention.proj.bias,
        attn_mask=None if allowed is None else ~allowed.repeat_interleave(3, 0),
    )
    torch.testing.assert_close(attention(x, allowed), expected.transpose(0, 1))


def test_block_is_a_pre_norm_layer_of_torch() -> None:
    torch.manual_seed(0)
    block = Block(12, heads=3, mlp_ratio=2.0)
    layer = torch.nn.TransformerEncoderLayer(
        12, 3, 24, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    own = block.state_dict()
    state = {}
    for theirs, ours in pairs.items():
        state |= {f"{theirs}{entry}": own[f"{ours}{entry}"] for entry in ("weight", "bias")}
    layer.load_state_dict(state)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(block(x), layer(x))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_shapes_and_pooling(positions: str, pool: str) -> None:
    model = vit(positions=positions, pool=pool)
    x = images()
    tokens = model.tokens(x)
    assert model.embed_dim == 16
    assert model.grid == (4, 6)
    assert tokens.patches.shape == (2, 24, 16)
    assert [h.shape for h in tokens.hidden] == [(2, 25, 16)] * 2
    torch.testing.assert_close(model(x), tokens.cls if pool == "cls" else tokens.patches.mean(1))
    assert ("pos_embed" in dict(model.named_parameters())) == (positions == "learned")


def test_parameters_and_names() -> None:
    model = ViT(image_size=(224, 224), patch_size=(16, 16), dim=192, depth=12, heads=3, positions="learned")
    # ViT-Tiny/16 has 5,717,416, with a classifier of 192 x 1000 + 1000 and a position for [CLS], which has none here.
    assert sum(p.numel() for p in model.parameters()) == 5_717_416 - 193_000 - 192
    names = set(model.state_dict())
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names
    assert {"blocks.11.mlp.fc2.bias", "blocks.11.norm2.weight", "norm.bias"} <= names


def test_patches_are_in_row_order() -> None:
    model = vit()
    x = images(1)
    patch = model.patch_embed["proj"](x[:, :, 4:8, 20:24]).flatten()
    torch.testing.assert_close(model.embed_patches(x)[0, 11], patch + model.pos_embed[0, 11])


def test_bytes_are_scaled() -> None:
    model = vit()
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels.float() / 255))


def test_sincos_positions_differ_and_depend_on_one_axis_each() -> None:
    codes = sincos_positions(16, height=3, width=5).view(3, 5, 16)
    assert torch.equal(codes[:, 0, :8], codes[:, 4, :8])
    assert torch.equal(codes[0, :, 8:], codes[2, :, 8:])
    assert len(codes.flatten(0, 1).unique(dim=0)) == 15
    torch.testing.assert_close(codes[2, 0, 0], torch.tensor(2.0).sin())


def test_one_rank_for_all_is_no_mask() -> None:
    model, x = vit(), images()
    torch.testing.assert_close(
        model.tokens(x, torch.zeros(2, 24, dtype=torch.long)).patches, model.tokens(x).patches
    )


def test_dropped_patches_leave_no_trace() -> None:
    model, x = vit(), images()
    rank = torch.zeros(2, 24, dtype=torch.long)
    rank[0, 3:20], rank[1, [0, 23]] = -1, -1  # ragged: 7 and 22 kept
    tokens = model.tokens(x, rank)
    assert tokens.patches.shape == (2, 22, 16)
    assert not tokens.patches[0, 7:].any()
    other = images(seed=1)
    pixels = (rank < 0).view(2, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = model.tokens(torch.where(pixels, other, x), rank)
    torch.testing.assert_close(changed.patches, tokens.patches, atol=0, rtol=0)
    torch.testing.assert_close(changed.cls, tokens.cls, atol=0, rtol=0)
    alone = model.tokens(x[:1], rank[:1])  # without padding
    torch.testing.assert_close(alone.patches[0], tokens.patches[0, :7])


def test_ranks_see_lower_ones_only() -> None:
    model, x = vit(), images(1)
    rank = torch.arange(24).view(1, 24) // 8
    whole = model.tokens(x, rank).patches
    for r in range(3):
        part = model.tokens(x, torch.where(rank <= r, rank, -1)).patches
        torch.testing.assert_close(part, whole[:, : 8 * (r + 1)])
    assert not torch.allclose(whole[:, :8], model.tokens(x).patches[:, :8])


def test_packing_keeps_the_order_of_each_row() -> None:
    keep = torch.rand(50, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    keep[7] = False
    packed = Packed.of(keep)
    assert packed.index.shape[1] == int(keep.sum(1).max())
    for row in range(50):
        assert packed.index[row][packed.valid[row]].tolist() == keep[row].nonzero().flatten().tolist()
    values = torch.arange(50 * 30 * 2).view(50, 30, 2)
    taken = packed.take(values)
    assert torch.equal(taken[packed.valid], values[keep])
    assert not taken[~packed.valid].any()


def test_errors() -> None:
    with pytest.raises(ValueError, match="do not tile"):
        vit(patch_size=(5, 4))
    with pytest.raises(ValueError, match="cls or mean"):
        vit(pool="max")
    with pytest.raises(ValueError, match="learned or sincos"):
        vit(positions="rope")
    with pytest.raises(ValueError, match="3 heads"):
        vit(heads=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        vit(dim=18)
    with pytest.raises(ValueError, match=r"\[N, 3, 16, 24\]"):
        vit()(torch.zeros(1, 1, 16, 24))
    with pytest.raises(ValueError, match="ranks must be"):
        vit().tokens(images(), torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="bool"):
        Packed.of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected 2 blocks"):
        init_weights(Block(4, heads=1), depth=2)
