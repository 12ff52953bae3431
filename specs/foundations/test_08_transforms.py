"""Transforms: from image files to the tensors that a model is trained on.

At the end you can turn images into tensors, scale, normalise and resize them, augment the training
images (change them at random, so that the model sees more than there are), and write a transform.
Read before: lesson 7, data sets and loaders.

A transform is a callable: an image in, an image out. torchvision has most of them twice, in
`torchvision.transforms` (v1) and in `torchvision.transforms.v2`, its successor.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, random_split

from reference import data, transforms
from reference.loading import TableDataset
from reference.training import accuracy, fit
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

v1 = optional("torchvision.transforms")
v2 = optional("torchvision.transforms.v2")
tv_tensors = optional("torchvision.tv_tensors")
datasets = optional("torchvision.datasets")

VISION = "https://docs.pytorch.org/vision/stable"
V2 = f"{VISION}/generated/torchvision.transforms.v2"
Make = Callable[..., Any]


def last_to_first(steps: list[Make]) -> Make:
    """Applies the last transform first, as f(g(x)) is read."""
    return transforms.Compose(steps[::-1])


@rule(
    "TF-01",
    "Compose applies its transforms from left to right, each to what the one before returned.",
    kind="contract",
    source=f"{V2}.Compose.html",
    subject=[v2.Compose, transforms.Compose],
    violated_by=[last_to_first],
)
def test_the_order_of_the_list_is_the_order_of_the_work(Compose: Make) -> None:
    """Any function will do as a transform."""
    brighten_then_double = Compose([lambda image: image + 1, lambda image: image * 2])
    assert brighten_then_double(torch.tensor([0.0, 10.0])).tolist() == [2, 22]


class KeepsTheRange(transforms.ToTensor):
    """Makes floats of the bytes, from 0 to 255."""

    def __call__(self, image: Any) -> Tensor:
        return super().__call__(image) * 255


@rule(
    "CNN-06",
    "ToTensor makes (channels, height, width) and floats from 0 to 1 of an image of bytes, but"
    " leaves floats as they are; in v2 it is ToImage, then ToDtype(torch.float32, scale=True).",
    kind="contract",
    source=f"{VISION}/generated/torchvision.transforms.ToTensor.html",
    subject=[v1.ToTensor, transforms.ToTensor],
    violated_by=[KeepsTheRange],
    consequence="Digits as numbers from 0 to 255: with a learning rate of 0.5 the test loss after"
    " two epochs is 550 or more, from 0 to 1 it is 0.7 (eight seeds).",
)
def test_bytes_become_floats_from_0_to_1(ToTensor: Make) -> None:
    """All 256 bytes, in an image of 16 x 8 pixels and 2 channels."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 8, 2)
    tensor = ToTensor()(image)
    assert tensor.dtype == torch.float32
    assert agree(tensor, torch.from_numpy(image).permute(2, 0, 1).double() / 255, ulps=1)
    floats = np.full((16, 8, 2), 255.0, dtype=np.float32)
    assert ToTensor()(floats).max() == 255


def linear_model_of(dataset: Any, epochs: int) -> nn.Module:
    """Softmax regression, trained on shuffled batches of 64 with a learning rate of 0.5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = DataLoader(dataset, batch_size=64, shuffle=True)
    fit(model, batches, nn.CrossEntropyLoss(), optimizer, epochs=epochs)
    return model


@spec("CNN-06", violated_by=[KeepsTheRange])
def test_unscaled_digits_are_not_learned(ToTensor: Make) -> None:
    """Large inputs give large gradients: a learning rate that fits 0 to 1 is too large for them."""
    digits = data.digits()

    def as_data_set(inputs: Tensor, targets: Tensor) -> TableDataset:
        return TableDataset((inputs.reshape(-1, 8, 8) * 255).byte().numpy(), targets, ToTensor())

    model = linear_model_of(as_data_set(digits.train_inputs, digits.train_targets), epochs=2)
    test_set = as_data_set(digits.test_inputs, digits.test_targets)
    ((images, targets),) = DataLoader(test_set, batch_size=360)
    test_loss = nn.CrossEntropyLoss()(model(images), targets)
    assert test_loss < 1.5


def scales_anyway(dtype: torch.dtype, scale: bool = True) -> Make:
    """Scales unless told not to."""
    return v2.ToDtype(dtype, scale=scale)


@spec("CNN-06", subject=v2.ToDtype, violated_by=[scales_anyway])
def test_v2_scales_only_if_told_to(ToDtype: Make) -> None:
    """Without scale=True a pixel of 255 becomes 255.0."""
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    scaled = ToDtype(torch.float32, scale=True)(v2.ToImage()(image))
    assert agree(scaled, v1.ToTensor()(image), ulps=1)
    assert ToDtype(torch.float32)(v2.ToImage()(image)).max() == 255


def alike_for_all_channels(mean: list[float], std: list[float]) -> Make:
    """Uses the numbers of the first channel for each."""
    return transforms.Normalize(mean[:1] * len(mean), std[:1] * len(std))


@rule(
    "TF-02",
    "Normalize gives (pixel - mean) / std, with mean and std of the pixel's channel over all pixels"
    " of all training images; it refuses bytes, so it comes after scaling.",
    kind="contract",
    source=f"{V2}.Normalize.html",
    subject=[v2.Normalize, transforms.Normalize],
    violated_by=[alike_for_all_channels],
)
def test_each_channel_has_its_own_mean_and_std(Normalize: Make) -> None:
    """The inverse, to look at a normalised image, is a Normalize, too."""
    mean, std = [0.5, 0.4, 0.1], [0.25, 0.5, 0.2]
    images = torch.rand(2, 3, 4, 5)
    normalized = Normalize(mean, std)(images)
    m, s = torch.tensor([mean, std], dtype=torch.float64)[:, :, None, None]
    # A pixel is at most 1, and 1 divided by a std of 0.2 is 5.
    assert agree(normalized, (images.double() - m) / s, ulps=2, scale=5)
    inverse = Normalize([-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std])
    assert agree(inverse(normalized), images, ulps=4)
    with pytest.raises(TypeError):
        Normalize(mean, std)((images * 255).byte())


def mean_of_the_images_own(images: Tensor) -> tuple[list[float], list[float]]:
    """Averages the deviations within the images: how they differ from each other is lost."""
    return images.mean(dim=(0, 2, 3)).tolist(), images.std(dim=(2, 3)).mean(dim=0).tolist()


@spec("TF-02", subject=transforms.channel_statistics, violated_by=[mean_of_the_images_own])
def test_pixels_of_all_images_count_alike(channel_statistics: Make) -> None:
    """500 black and 500 white pages, in a first channel; in a second one they are 0.5 and 0.6."""
    black_or_white = torch.arange(1000).fmod(2).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    images = torch.cat([black_or_white, 0.5 + 0.1 * black_or_white], dim=1)
    mean, std = channel_statistics(images)
    # With n - 1 for n = 64,000 pixels the std is larger by a factor of 1.000008.
    assert mean == pytest.approx([0.5, 0.55], rel=1e-4)
    assert std == pytest.approx([0.5, 0.05], rel=1e-4)


def picks_pixels(size: Any) -> Make:
    """Looks at a few pixels only, where an image gets smaller."""
    return v2.Resize(size, antialias=False)


@rule(
    "CNN-07",
    "Resize(n) makes the shorter side n and keeps the aspect ratio, Resize((h, w)) does not; fine"
    " detail is averaged by default (antialias=True).",
    kind="contract",
    source=f"{V2}.Resize.html",
    subject=v2.Resize,
    violated_by=[picks_pixels],
)
def test_one_number_keeps_the_shape_and_thin_lines_stay(Resize: Make) -> None:
    """So Resize(n) alone gives images that do not stack to a batch."""
    assert Resize(8)(torch.zeros(3, 10, 20)).shape == (3, 8, 16)
    assert Resize(8)(torch.zeros(3, 20, 10)).shape == (3, 16, 8)
    assert Resize((8, 6))(torch.zeros(3, 10, 20)).shape == (3, 8, 6)
    line_at_the_edge = pad(torch.ones(1, 8, 1), (0, 7))
    # Six columns make the first new one, with the weights 5, 7, 7, 5, 3 and 1: a triangle.
    assert Resize((2, 2))(line_at_the_edge)[0, 0].tolist() == pytest.approx([5 / 28, 0])


def in_natural_order(root: Any) -> Any:
    """Sorts class names without regard to capitals."""
    found = datasets.ImageFolder(root)
    found.classes.sort(key=str.lower)
    return found


@rule(
    "CNN-08",
    "ImageFolder numbers the classes by the code points of their folders' names.",
    kind="contract",
    source=f"{VISION}/generated/torchvision.datasets.ImageFolder.html",
    subject=datasets.ImageFolder,
    violated_by=[in_natural_order],
    consequence="With one folder more or less, a saved model's answers mean other classes.",
)
def test_capitals_come_first_and_10_before_9(ImageFolder: Make, tmp_path: Any) -> None:
    """So keep class_to_idx with the model."""
    names = ["9", "10", "ant", "Bee"]
    for grey, name in enumerate(names):
        (tmp_path / name).mkdir()
        image = v2.ToPILImage()(torch.full((1, 4, 4), grey, dtype=torch.uint8))
        image.save(tmp_path / name / "a.png")
    folder = ImageFolder(tmp_path)
    assert folder.classes == ["10", "9", "Bee", "ant"]
    labels = {names[np.array(image).max()]: label for image, label in folder}
    assert labels == folder.class_to_idx == {"10": 0, "9": 1, "Bee": 2, "ant": 3}


class DrawsOnce(transforms.RandomHorizontalFlip):
    """Decides when it is made, for all images."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p=float(torch.rand(()) < p))


class DrawsFromPython(transforms.RandomHorizontalFlip):
    """Does not follow torch.manual_seed."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if random.random() < self.p else image


@rule(
    "TF-03",
    "A random transform draws anew in each call, from the generator that torch.manual_seed seeds.",
    kind="contract",
    source=f"{V2}.RandomHorizontalFlip.html",
    subject=[v2.RandomHorizontalFlip, transforms.RandomHorizontalFlip],
    violated_by=[DrawsOnce, DrawsFromPython],
)
def test_each_call_flips_or_not_as_the_seed_wants(RandomHorizontalFlip: Make) -> None:
    """So one image comes in a new form in each epoch."""
    image = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    mirrored = torch.tensor([[[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]])

    def flips(p: float) -> list[bool]:
        torch.manual_seed(1)
        flip = RandomHorizontalFlip(p=p)
        results = [flip(image) for _ in range(400)]
        assert all(torch.equal(one, image) or torch.equal(one, mirrored) for one in results)
        return [torch.equal(one, mirrored) for one in results]

    assert flips(0.3) == flips(0.3)
    # 400 draws with p = 0.3 have the standard deviation sqrt(400 * 0.3 * 0.7) = 9.2.
    assert abs(sum(flips(0.3)) - 400 * 0.3) < 5 * 9.2
    assert (sum(flips(0.0)), sum(flips(1.0))) == (0, 400)


class FlipsEachImage(transforms.RandomHorizontalFlip):
    """Draws for each image of a batch."""

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack([super(FlipsEachImage, self).__call__(one) for one in image])


@spec("TF-03", violated_by=[FlipsEachImage])
def test_a_batch_is_one_call(RandomHorizontalFlip: Make) -> None:
    """All its images are flipped or none is: transform samples in the data set, not batches."""
    batch = torch.arange(3.0).expand(32, 1, 2, 3)
    for _ in range(10):
        flipped = RandomHorizontalFlip()(batch)
        assert torch.equal(flipped, flipped[:1].expand_as(flipped))


class Shift(v2.Transform):  # type: ignore[name-defined]
    """A v2 transform of one's own: moves by -1, 0 or 1 pixels, around the edge."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"by": int(torch.randint(-1, 2, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return tv_tensors.wrap(inpt.roll(params["by"], -1), like=inpt)


class ShiftsEach(Shift):
    """Draws for the image and for its mask."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return super().transform(inpt, self.make_params([params]))


@rule(
    "TF-04",
    "A v2 transform draws in make_params, once a call, and transforms images and masks alike; a"
    " label beside them passes unchanged, and so does a plain tensor.",
    kind="contract",
    source=f"{VISION}/auto_examples/transforms/plot_custom_transforms.html",
    subject=[v2.RandomHorizontalFlip, Shift],
    violated_by=[ShiftsEach],
)
def test_an_image_and_its_mask_move_together(RandomHorizontalFlip: Make) -> None:
    """Say what a tensor is (tv_tensors): a mask that is a plain tensor would stay behind."""
    image = tv_tensors.Image(torch.arange(6.0).reshape(1, 2, 3))
    mask = tv_tensors.Mask(torch.arange(6).reshape(1, 2, 3))
    plain = torch.arange(6).reshape(1, 2, 3)
    results = [RandomHorizontalFlip()(image, mask, 7, plain) for _ in range(20)]
    for moved, moved_mask, label, left in results:
        assert moved.tolist() == moved_mask.tolist()
        assert (type(moved), type(moved_mask)) == (tv_tensors.Image, tv_tensors.Mask)
        assert label == 7
        assert torch.equal(left, plain)
    assert len({str(moved) for moved, *_ in results}) > 1


def one_data_set_for_both(inputs: Tensor, targets: Tensor, augment: Make, **wanted: int) -> Any:
    """Splits one augmented data set: its parts share the transform."""
    sizes = [len(inputs) - wanted["validation"], wanted["validation"]]
    return random_split(TableDataset(inputs, targets, augment), sizes)


@rule(
    "TF-05",
    "Augment the training images only: random_split of one augmented data set augments both parts.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.random_split",
    subject=transforms.train_and_validation,
    violated_by=[one_data_set_for_both],
    consequence="Digits moved at random by a pixel, a linear model: it is right for 69 to 81% of"
    " the validation images, and for 35 to 50% if these are moved, too (eight seeds).",
)
def test_validation_images_stay_as_they_are(train_and_validation: Make, observe: Observe) -> None:
    """Validation asks what the model does with images as they come. 60% is asked for."""
    digits, move = data.digits(), transforms.RandomShift()
    images, wanted = digits.train_inputs.reshape(-1, 1, 8, 8), {"validation": 300, "seed": 0}
    train, validation = train_and_validation(images, digits.train_targets, move, **wanted)
    inputs, targets = next(iter(DataLoader(validation, batch_size=300)))
    share_right = accuracy(linear_model_of(train, epochs=3), inputs, targets)
    observe("accuracy", share_right)
    assert share_right > 0.6
    train, validation = train_and_validation(images, torch.arange(1437), move, **wanted)
    held_out = [int(number) for _, number in validation]
    assert torch.equal(inputs, images[held_out])
    assert sorted([*held_out, *(int(number) for _, number in train)]) == list(range(1437))
    assert not all(torch.equal(image, images[number]) for image, number in train)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Moved images, black where they came from: a negative padding cuts off."""
    return pad(images, (right, -right, down, -down))


class TurnsUpsideDown(transforms.RandomShift):
    """Turns every other digit around: a 6 is then a 9, with the label 6."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.rot90(2, (-2, -1)) if torch.rand(()) < 0.5 else image


@rule(
    "TF-06",
    "Augment by changes that the model will meet and that leave the label right.",
    kind="practice",
    source=f"{VISION}/transforms.html",
    subject=transforms.RandomShift,
    violated_by=[TurnsUpsideDown],
    consequence="Of test digits moved by a pixel a linear model has 40 to 43% right, 53 to 59% if"
    " training digits were moved, too; of unmoved ones then 72 to 83%, not 92 to 94% (ten seeds).",
)
def test_moved_digits_are_learned_from_moved_digits(RandomShift: Make, observe: Observe) -> None:
    """A linear model pays for it where nothing is moved. 48% is asked for."""
    digits = data.digits()
    train, test = (part.reshape(-1, 1, 8, 8) for part in (digits.train_inputs, digits.test_inputs))
    model = linear_model_of(TableDataset(train, digits.train_targets, RandomShift()), epochs=5)
    moved = torch.cat([shifted(test, *by) for by in ((0, 1), (0, -1), (1, 0), (-1, 0))])
    share_right = accuracy(model, moved, digits.test_targets.repeat(4))
    observe("accuracy", share_right)
    assert share_right > 0.48


@spec("TF-06", violated_by=[TurnsUpsideDown])
def test_all_shifts_are_equally_probable(RandomShift: Make) -> None:
    """By -1, 0 or 1 pixels down and to the right; what gets free is black."""
    image = torch.arange(1.0, 10.0).reshape(1, 3, 3)
    for pixels in (1, 2):
        steps = range(-pixels, pixels + 1)
        possible = [shifted(image, down, right) for down, right in product(steps, steps)]
        shift = RandomShift(pixels)
        drawn = [shift(image).flatten().tolist() for _ in range(900)]
        counts = [drawn.count(one.flatten().tolist()) for one in possible]
        expected = 900 / len(possible)
        assert sum(counts) == 900
        # The standard deviation of a count is a little below sqrt(expected).
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)
