"""Stretches against direct slicing of the demonstrations, splits, and batches that are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.imitation.batches import ChunkBatch, History, ObservationError, PolicyObservation
from policies.imitation.chunks import (
    ChunkDataset,
    check_apart,
    chunk_batches,
    collate_chunks,
    seeds_by_task,
    split_demonstrations,
)
from tests.policies.imitation.toys import TASKS, batch, demonstration, demonstrations


def test_stretches_are_slices_of_one_episode_whose_last_step_repeats() -> None:
    shown = demonstrations(4, images=True)
    dataset = ChunkDataset(shown, tasks=TASKS, chunk=5, horizon=7, environment_sequence=True, image_stride=3)
    assert len(dataset) == sum(len(d) for d in shown)
    place = 0
    for number, d in enumerate(shown):
        for t in range(len(d)):
            got = dataset[(place, 11)]
            place += 1
            steps = [min(t + k, len(d) - 1) for k in range(7)]
            assert d.environment is not None
            assert d.image is not None
            np.testing.assert_array_equal(got.state, d.state[steps])
            np.testing.assert_array_equal(got.action, d.action[steps[:5]])
            pairs: list[tuple[np.ndarray | None, np.ndarray]] = [
                (got.environment, d.environment[t]),
                (got.environments, d.environment[steps]),
                (got.image, d.image[t]),
                (got.images, d.image[steps[::3]]),
            ]
            for mine, expected in pairs:
                assert mine is not None
                np.testing.assert_array_equal(mine, expected)
            assert got.is_pad.tolist() == [t + k >= len(d) for k in range(7)]
            assert (got.task, got.seed, got.has_action) == (number % 2, 11, True)


def test_a_chunk_may_be_longer_than_the_horizon() -> None:
    made = ChunkDataset(demonstrations(1), tasks=TASKS, chunk=5, horizon=2)
    data = collate_chunks([made[(0, 0)], made[(len(made) - 1, 0)]])
    assert data.state.shape == (2, 2, 3)
    assert data.state_is_pad.tolist() == [[False, False], [False, True]]
    assert data.action_is_pad[1].tolist() == [False, True, True, True, True]
    assert data.action_counts[1].tolist() == [True, False, False, False, False]


def test_batches_hold_images_channels_first_and_keep_their_type() -> None:
    shown = demonstrations(2, images=True)
    made = ChunkDataset(shown, tasks=TASKS, chunk=4, image_stride=2)
    data = collate_chunks([made[(0, 5)], made[(3, 6)]])
    assert data.seeds == (5, 6)
    assert data.image is not None
    assert data.images is not None
    assert data.image.dtype == torch.uint8
    assert data.image.shape == (2, 3, 16, 16)
    assert data.images.shape == (2, 2, 3, 16, 16)
    assert torch.equal(data.image, data.images[:, 0])
    assert shown[0].image is not None
    np.testing.assert_array_equal(data.image[0].permute(1, 2, 0), shown[0].image[0])


def test_hidden_actions_are_zero_and_marked() -> None:
    made = ChunkDataset(demonstrations(2), tasks=TASKS, chunk=4, action_free=[1])
    last = collate_chunks([made[(0, 0)], made[(len(made) - 1, 0)]])
    assert last.has_action.tolist() == [True, False]
    assert not last.action[1].any()
    assert not last.action_counts[1].any()
    assert not last.action_is_pad[1, 0]


def test_heldout_batches_are_the_same_for_the_same_seed_and_never_repeat() -> None:
    dataset = ChunkDataset(demonstrations(), tasks=TASKS, chunk=4)
    one, other = (chunk_batches(dataset, batch_size=16, seed=3) for _ in range(2))
    assert sum(map(len, one)) == len(dataset)
    assert all(torch.equal(a.state, b.state) for a, b in zip(one, other, strict=True))
    rows = torch.cat([b.state[:, 0] for b in one]).tolist()
    every = [row for d in demonstrations() for row in d.state.tolist()]
    assert sorted(rows) == sorted(every)
    assert sum(map(len, chunk_batches(dataset, batch_size=16, count=20))) == 20


def test_whole_episodes_are_held_out_the_same_number_of_each_task() -> None:
    shown = demonstrations(10)
    training, heldout = split_demonstrations(shown, heldout_per_task=2, seed=0)
    assert sorted(training + heldout) == list(range(10))
    assert sorted(shown[i].task for i in heldout) == ["push", "push", "reach", "reach"]
    assert split_demonstrations(shown, heldout_per_task=2, seed=0) == (training, heldout)
    splits = {tuple(split_demonstrations(shown, heldout_per_task=2, seed=s)[1]) for s in range(5)}
    assert len(splits) > 1
    with pytest.raises(ValueError, match="5 of the 5 demonstrations of push"):
        split_demonstrations(shown, heldout_per_task=5, seed=0)


def test_recording_more_moves_few_episodes_and_what_was_trained_on_is_not_held_out() -> None:
    shown = demonstrations(40)
    before = shown[:30]
    training, heldout = (
        [before[i] for i in part] for part in split_demonstrations(before, heldout_per_task=5, seed=0)
    )
    order = [d.seed for d in training]
    longer, later = (
        [shown[i] for i in part] for part in split_demonstrations(shown, heldout_per_task=5, seed=0)
    )
    # New episodes stand in between; the others stay in their order, and nobody is held out who was trained on.
    kept = [d.seed for d in longer if d.seed < 30 and d.seed in order]
    assert kept == [seed for seed in order if seed in kept] == order
    assert {d.seed for d in later if d.seed < 30} <= {d.seed for d in heldout}
    trained = seeds_by_task(training)
    assert trained == {
        "push": sorted(s for s in order if s % 2),
        "reach": sorted(s for s in order if not s % 2),
    }
    check_apart(trained, later)
    check_apart(trained, heldout)
    with pytest.raises(ValueError, match=rf"1 of 11 .*seed {order[3]}\): split as then"):
        check_apart(trained, [*heldout, training[3]])
    assert seeds_by_task(training[:1], besides={"reach": [999], "fly": [1]})["fly"] == [1]


def test_demonstrations_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="got none"):
        ChunkDataset([], tasks=TASKS, chunk=4)
    with pytest.raises(ValueError, match="at least 1"):
        ChunkDataset(demonstrations(1), tasks=TASKS, chunk=0)
    with pytest.raises(ValueError, match="beyond the 1"):
        ChunkDataset(demonstrations(1), tasks=TASKS, chunk=4, action_free=[1])
    with pytest.raises(ObservationError, match="demonstrations of push"):
        ChunkDataset(demonstrations(2), tasks=["reach"], chunk=4)
    mixed = [demonstration(0), demonstration(2, images=True)]
    with pytest.raises(ObservationError, match=r"demonstration 1 \(reach, seed 2\) has image \(16, 16, 3\)"):
        ChunkDataset(mixed, tasks=TASKS, chunk=4)


def test_stretches_that_cannot_be_learned_from_are_named() -> None:
    made = ChunkDataset(demonstrations(1), tasks=TASKS, chunk=4)
    good = made[(0, 0)]
    bad = replace(good, state=np.full_like(good.state, np.nan))
    with pytest.raises(ObservationError, match="state of stretch 1 holds NaN"):
        collate_chunks([good, bad])
    with pytest.raises(ObservationError, match="begins past the end"):
        collate_chunks([replace(good, is_pad=np.ones(4, dtype=bool))])


def test_the_observation_of_a_batch_is_its_current_step() -> None:
    data = batch("image")
    seen = data.observation
    assert torch.equal(seen.state, data.state[:, 0])
    assert seen.environment is data.environment
    assert seen.image is data.image
    assert seen.history is None


def test_batches_and_observations_are_moved_and_selected_whole() -> None:
    data = batch("image")
    moved = data.to("cpu")
    assert isinstance(moved, ChunkBatch)
    assert torch.equal(moved.images, data.images)  # type: ignore[arg-type]
    past = History(
        state=torch.arange(4.0).view(4, 1, 1),
        environment=None,
        image=None,
        action=torch.zeros(4, 1, 1),
        count=torch.tensor([1, 0, 1, 0]),
    )
    seen = PolicyObservation(
        state=torch.arange(4.0).view(4, 1),
        environment=None,
        image=None,
        task=torch.arange(4),
        history=past.to("cpu"),
    )
    some = seen.to("cpu").select(torch.tensor([2, 1]))
    assert some.state.flatten().tolist() == some.task.tolist() == [2, 1]
    assert some.history is not None
    assert some.history.state.flatten().tolist() == [2, 1]
    assert some.history.count.tolist() == [1, 0]
    assert len(some) == 2


def test_shapes_are_checked() -> None:
    state, task = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ObservationError, match="task"):
        PolicyObservation(state=state, environment=None, image=None, task=task.int())
    with pytest.raises(ObservationError, match="environment must have 2 axes and 2 rows"):
        PolicyObservation(state=state, environment=torch.zeros(3, 4), image=None, task=task)
    with pytest.raises(ObservationError, match="B seeds"):
        replace(batch(), seeds=(1,))
    with pytest.raises(ObservationError, match="is_pad must be"):
        replace(batch(), is_pad=torch.zeros(8, 2, dtype=torch.bool))
