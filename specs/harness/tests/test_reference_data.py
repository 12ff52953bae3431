"""The references that specs stand on but that no rule judges: the data sets, and accuracy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reference.data import Split, batches, breast_cancer, digits
from reference.training import accuracy


def test_digits_are_all_the_images_with_grey_levels_from_0_to_1() -> None:
    split = digits()
    assert [tuple(part.shape) for part in split] == [(1437, 64), (1437,), (360, 64), (360,)]
    assert split.train_inputs.dtype == split.test_inputs.dtype == torch.float32
    assert split.train_targets.dtype == split.test_targets.dtype == torch.int64
    inputs = torch.cat([split.train_inputs, split.test_inputs])
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)
    assert (inputs.sum() * 16).item() == 561718  # all pixels of the 1,797 images, levels 0 to 16


def test_tumours_are_standardised_by_the_training_part_alone() -> None:
    split = breast_cancer()
    assert [tuple(part.shape) for part in split] == [(455, 30), (455,), (114, 30), (114,)]
    assert all(part.dtype == torch.float32 for part in split)
    torch.testing.assert_close(split.train_inputs.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(split.train_inputs.std(0), torch.ones(30))
    assert split.test_inputs.mean(0).abs().max() > 0.05
    assert torch.cat([split.train_targets, split.test_targets]).sum() == 212  # malignant ones


@pytest.mark.parametrize("load", [digits, breast_cancer])
def test_both_parts_have_the_same_share_of_each_class(load: Callable[[], Split]) -> None:
    split = load()
    for kind in split.train_targets.unique():
        share = (split.train_targets == kind).float().mean()
        assert abs((split.test_targets == kind).float().mean() - share) < 0.01


def test_the_split_is_fixed() -> None:
    assert digits().test_targets[:8].tolist() == [7, 6, 3, 7, 7, 3, 2, 8]
    assert breast_cancer().test_targets[:8].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("load", [digits, breast_cancer])
def test_who_changes_a_data_set_changes_a_copy(load: Callable[[], Split]) -> None:
    load().train_inputs.zero_()
    assert load().train_inputs.any()


def test_batches_cover_the_data_in_order_or_shuffled_by_the_generator() -> None:
    inputs, targets = torch.arange(7.0), torch.arange(7)
    in_order = batches(inputs, targets, 3)
    assert [batch.tolist() for batch, _ in in_order] == [[0, 1, 2], [3, 4, 5], [6]]

    def shuffled(seed: int) -> list[tuple[Tensor, Tensor]]:
        return batches(inputs, targets, 3, torch.Generator().manual_seed(seed))

    order = torch.cat([batch for batch, _ in shuffled(0)])
    assert order.tolist() != inputs.tolist()
    assert order.sort().values.tolist() == inputs.tolist()
    assert torch.equal(order, torch.cat([batch for batch, _ in shuffled(0)]))
    assert not torch.equal(order, torch.cat([batch for batch, _ in shuffled(1)]))
    assert all(torch.equal(batch, target.float()) for batch, target in shuffled(0))
    assert len(batches(inputs, targets, 1)) == 7


def test_batches_of_nothing_and_of_unequal_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(torch.ones(2), torch.ones(2), 0)
    with pytest.raises(ValueError, match="2 inputs but 3 targets"):
        batches(torch.ones(2), torch.ones(3), 1)


class SeesItsMode(nn.Module):
    """Predicts class 1 in eval mode, class 0 in training mode; notes whether autograd is on."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.saw_gradients = torch.is_grad_enabled()
        logits = torch.zeros(len(inputs), 2)
        logits[:, 0 if self.training else 1] = 1.0
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_is_taken_in_eval_mode_without_gradients_and_puts_the_mode_back(
    training: bool,
) -> None:
    model = SeesItsMode().train(training)
    targets = torch.tensor([1, 1, 1, 0])
    assert accuracy(model, torch.zeros(4, 3), targets) == 0.75
    assert model.training is training
    assert model.saw_gradients is False
