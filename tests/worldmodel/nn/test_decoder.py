"""Post-norm layers against their formulas, key padding and causality, queries, and position codes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.nn.decoder import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    QueryDecoder,
    later,
    map_positions,
    sequence_positions,
)

D, HEADS, HIDDEN = 8, 2, 12
SIZES = {"heads": HEADS, "hidden": HIDDEN, "dropout": 0.0}


def seeded(make: type[nn.Module], *arguments: int, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options).double()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(part: nn.MultiheadAttention, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Softmax of scaled dot products, written out for every head."""
    assert part.in_proj_weight is not None
    weights, biases = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    q, k, v = (F.linear(t, w, b) for t, w, b in zip((x, memory, memory), weights, biases, strict=True))
    out = []
    for head in range(HEADS):
        mine = slice(head * D // HEADS, (head + 1) * D // HEADS)
        scores = q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(D // HEADS)
        out.append(scores.softmax(-1) @ v[..., mine])
    return part.out_proj(torch.cat(out, -1))


def test_encoder_layer_is_post_norm() -> None:
    layer = seeded(EncoderLayer, D, **SIZES)
    assert isinstance(layer, EncoderLayer)
    x = random(3, 5, D)
    first, _, _, second, _ = layer.mlp
    assert first.bias is None
    assert second.bias is None
    y = layer.norm1(x + attention(layer.self_attention, x, x))
    expected = layer.norm2(y + second(torch.relu(first(y))))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_decoder_layer_is_post_norm() -> None:
    layer = seeded(DecoderLayer, D, **SIZES)
    assert isinstance(layer, DecoderLayer)
    x, memory = random(3, 5, D), random(3, 4, D, seed=1)
    y = layer.norm1(x + attention(layer.self_attention, x, x))
    y = layer.norm2(y + attention(layer.cross_attention, y, memory))
    torch.testing.assert_close(layer(x, memory), layer.norm3(y + layer.mlp(y)))


@pytest.mark.parametrize("make", [Encoder, Decoder])
def test_padding_equals_shorter_sequences(make: type[nn.Module]) -> None:
    stack = seeded(make, D, layers=2, **SIZES)
    memory = () if make is Encoder else (random(2, 3, D, seed=1),)
    x = random(2, 6, D)
    is_pad = (torch.arange(6) >= 4).expand(2, -1)
    masked = stack(x, *memory, is_pad=is_pad)[:, :4]
    torch.testing.assert_close(masked, stack(x[:, :4], *memory))
    other = x.clone()
    other[:, 4:] = 1e3
    assert torch.equal(stack(other, *memory, is_pad=is_pad)[:, :4], masked)
    assert not torch.allclose(stack(other, *memory)[:, :4], masked)


@pytest.mark.parametrize("make", [Encoder, Decoder])
def test_causal_tokens_do_not_see_later_ones(make: type[nn.Module]) -> None:
    stack = seeded(make, D, layers=2, **SIZES)
    memory = () if make is Encoder else (random(2, 3, D, seed=1),)
    x = random(2, 6, D)
    whole = stack(x, *memory, causal=True)
    for length in (1, 3):
        torch.testing.assert_close(whole[:, :length], stack(x[:, :length], *memory, causal=True))
    assert not torch.allclose(whole[:, :3], stack(x, *memory)[:, :3])
    assert later(3, torch.device("cpu")).tolist() == [[False, True, True], [False, False, True], [False] * 3]


def test_queries_read_a_memory_in_any_order_and_of_any_width() -> None:
    reader = seeded(QueryDecoder, queries=4, out_dim=3, dim=D, layers=2, memory_dim=5, **SIZES).eval()
    memory = random(2, 7, 5)
    read = reader(memory)
    assert read.shape == (2, 4, 3)
    torch.testing.assert_close(reader(memory.flip(1)), read)
    torch.testing.assert_close(reader(memory[:1]), read[:1])
    is_pad = torch.tensor([[False, False, True, True]] * 2)
    padded = reader(memory, is_pad)
    with torch.no_grad():
        reader.queries[2:] += 1
    torch.testing.assert_close(reader(memory, is_pad)[:, :2], padded[:, :2])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        EncoderLayer(8, heads=3, hidden=4, dropout=0.0)


def test_sequence_positions_against_the_formula() -> None:
    codes = sequence_positions(6, 5)
    for k in range(5):
        for i in range(3):
            angle = k / 10000 ** (2 * i / 6)
            assert codes[k, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert codes[k, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    with pytest.raises(ValueError, match="even width"):
        sequence_positions(5, 3)


def test_map_positions_end_at_two_pi_and_tell_rows_from_columns() -> None:
    codes = map_positions(8, 2, 4).view(2, 4, 8)
    assert torch.equal(codes[0, :, :4], codes[0, :1, :4].expand(4, -1))
    assert torch.equal(codes[:, 0, 4:], codes[:1, 0, 4:].expand(2, -1))
    # Row 1 of 2 is half a turn, column 1 of 4 a quarter.
    torch.testing.assert_close(codes[0, 0, :2], torch.tensor([0.0, -1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes[0, 0, 4:6], torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(codes[1, 3, :2], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    assert len({tuple(row.tolist()) for row in codes.flatten(0, 1)}) == 8
    with pytest.raises(ValueError, match="multiple of 4"):
        map_positions(6, 2, 2)
