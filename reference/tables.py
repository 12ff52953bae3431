"""Tables with categorical and continuous columns, made of data that comes with scikit-learn.

scikit-learn takes a second to import, so it is imported only when a table is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from reference.data import SPLIT_SEED, TEST_SHARE


class Rows(NamedTuple):
    """Some rows of a table, cut into its two kinds of columns; rows lie along dimension 0."""

    #: int64, (rows, categorical columns): 0, 1, ... up to the column's number of categories - 1.
    categories: Tensor
    #: float32, (rows, continuous columns), standardised.
    values: Tensor


class Table(NamedTuple):
    """A table cut into a training part and a test part, and what is needed to read its numbers."""

    train: Rows
    test: Rows
    #: How many categories each categorical column has.
    cardinalities: tuple[int, ...]
    category_names: tuple[str, ...]
    value_names: tuple[str, ...]
    #: Of each continuous column on the training part, in the column's unit: float32, (columns,).
    mean: Tensor
    std: Tensor

    def in_units(self, values: Tensor) -> Tensor:
        """Standardised values (rows, columns) in the units of their columns: values * std + mean.

        Source: https://scikit-learn.org/stable/modules/preprocessing.html
        """
        return values * self.std + self.mean


def wines() -> Table:
    """Wine: 178 Italian wines, 142 for training; one categorical column and 13 continuous ones.

    The category is the cultivar, 0 to 2. The 13 measurements are standardised with the mean and
    the standard deviation of the training part only. The split keeps the share of each cultivar.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_wine.html
    """
    return _copied(_wines())


def patients() -> Table:
    """Diabetes: 442 patients, 353 for training; one categorical column and ten continuous ones.

    The category is the sex, 0 or 1, for the 1 and 2 of the source, which does not say which is
    which. Continuous are age, body mass index, blood pressure, six blood measurements, and the
    progression of the disease after one year. They are standardised with the mean and the
    standard deviation of the training part only. The split keeps the share of both sexes.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_diabetes.html
    """
    return _copied(_patients())


@lru_cache(maxsize=1)
def _wines() -> Table:
    from sklearn.datasets import load_wine

    wine = load_wine()
    return _table(
        {"cultivar": torch.as_tensor(wine.target)},
        torch.as_tensor(wine.data),
        tuple(wine.feature_names),
    )


@lru_cache(maxsize=1)
def _patients() -> Table:
    from sklearn.datasets import load_diabetes

    diabetes = load_diabetes(scaled=False)
    sex = diabetes.feature_names.index("sex")
    names = (*diabetes.feature_names[:sex], *diabetes.feature_names[sex + 1 :], "progression")
    columns = torch.as_tensor(diabetes.data)
    progression = torch.as_tensor(diabetes.target).unsqueeze(1)
    values = torch.cat([columns[:, :sex], columns[:, sex + 1 :], progression], dim=1)
    return _table({"sex": columns[:, sex] - 1}, values, names)


def _table(categories: dict[str, Tensor], values: Tensor, names: tuple[str, ...]) -> Table:
    from sklearn.model_selection import train_test_split

    columns = torch.stack(list(categories.values()), dim=1).long()
    train, test = train_test_split(
        range(len(values)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=columns
    )
    mean, std = values[train].mean(dim=0), values[train].std(dim=0)
    standardised = ((values - mean) / std).float()
    return Table(
        train=Rows(columns[train], standardised[train]),
        test=Rows(columns[test], standardised[test]),
        cardinalities=tuple((columns.amax(dim=0) + 1).tolist()),
        category_names=tuple(categories),
        value_names=names,
        mean=mean.float(),
        std=std.float(),
    )


def _copied(table: Table) -> Table:
    return table._replace(
        train=Rows(*(part.clone() for part in table.train)),
        test=Rows(*(part.clone() for part in table.test)),
        mean=table.mean.clone(),
        std=table.std.clone(),
    )
