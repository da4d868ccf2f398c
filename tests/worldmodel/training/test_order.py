"""The order of samples: a pure function, epochs are permutations, ranks share out the batch of one process."""

import pytest

from worldmodel.training.order import BatchOrder, Key, sample_key


def order(
    size: int = 10,
    micro: int = 4,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    end: int = 9,
) -> BatchOrder:
    return BatchOrder(
        size=size,
        micro_batch=micro,
        accumulate=accumulate,
        rank=rank,
        world=world,
        seed=5,
        start_step=start,
        max_steps=end,
    )


def test_epochs_are_permutations_and_differ() -> None:
    epochs = [[sample_key(e * 10 + i, size=10, seed=5)[0] for i in range(10)] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_draw_seeds_are_distinct_and_depend_on_the_run_seed() -> None:
    seeds = [sample_key(p, size=10, seed=5)[1] for p in range(500)]
    assert len(set(seeds)) == 500
    assert all(0 <= s < 2**63 for s in seeds)
    assert not set(seeds) & {sample_key(p, size=10, seed=6)[1] for p in range(500)}


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    batches = list(order(size=3, micro=8, end=2))
    assert [len(b) for b in batches] == [8, 8]
    indices = [index for batch in batches for index, _ in batch]
    assert all(sorted(indices[i : i + 3]) == [0, 1, 2] for i in range(0, 15, 3))


@pytest.mark.parametrize("start", [0, 1, 4, 8, 9])
def test_any_start_continues_the_same_order(start: int) -> None:
    assert list(order(start=start)) == list(order())[start:]
    assert len(order(start=start)) == 9 - start


def test_nothing_depends_on_what_was_asked_before() -> None:
    asked = order()
    late = asked.keys(7, 0)
    list(asked)
    assert asked.keys(7, 0) == late


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_share_out_the_batch_of_one_process(world: int, accumulate: int) -> None:
    def batch(step: int, world: int, accumulate: int) -> list[Key]:
        micro = 8 // world // accumulate
        return [
            key
            for m in range(accumulate)
            for rank in range(world)
            for key in order(micro=micro, accumulate=accumulate, rank=rank, world=world).keys(step, m)
        ]

    for step in range(9):
        assert batch(step, world, accumulate) == batch(step, 1, 1)


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="training set is empty"):
        order(size=0)
