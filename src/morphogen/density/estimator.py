"""The distribution of a table behind the interface of scikit-learn: `Density`."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from morphogen.density.conditional import Filled
from morphogen.density.darn import bernoulli
from morphogen.density.gradient_estimators import EstimatorName
from morphogen.density.learn import Training
from morphogen.density.mixture import filled, learn_orders, log_likelihood_of, sample
from morphogen.density.search import Step, search
from morphogen.density.variables import UNKNOWN, as_frame, fit_variables
from morphogen.errors import DataError
from morphogen.random_state import own_draws

FEWEST = 10  # rows
_DRAWS = 10  # of h, over which a column's cost is averaged


class Density(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """How likely rows are, by a deep autoregressive network whose shape is found on held out rows.

    X: a table, or an array (rows, columns), of numbers, categories and gaps, see
    `density.variables`. estimator: a name of ESTIMATORS. samples: of h for each row that is scored.
    rate, patience, weight_noise: see `Training`. orders: so many networks of the shape that was
    found, each of which reads the columns in another order, and which are averaged. seconds: of
    each of the trainings that the search consists of. valid_fraction: rows held out.

    After `fit`: model_ (a `Darn`, which reads the columns in the table's order), mixture_ (all
    networks), variables_, steps_ (the networks of the search), feature_names_in_, n_features_in_.

    Source: Gregor et al. 2014 (arXiv 1310.8499).
    """

    def __init__(
        self,
        *,
        estimator: EstimatorName = "half",
        samples: int = 200,
        rate: float = 5e-4,
        patience: int = 15,
        weight_noise: bool = False,
        orders: int = 1,
        seconds: float | None = None,
        valid_fraction: float = 0.15,
        random_state: Any = 0,
    ) -> None:
        self.estimator = estimator
        self.samples = samples
        self.rate = rate
        self.patience = patience
        self.weight_noise = weight_noise
        self.orders = orders
        self.seconds = seconds
        self.valid_fraction = valid_fraction
        self.random_state = random_state

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        validation_data: Any = None,
        say: Callable[[Step], None] = lambda step: None,
        stopping: Callable[[], bool] = lambda: False,
        kept: Path | None = None,
    ) -> Self:
        """Learn from rows X. validation_data: rows that decide, in the place of some held out. say:
        called with each network of the search. stopping: asked while it trains, whether to end.
        kept: a folder of finished trainings, from which a search that was stopped goes on.

        DataError: too few rows, or a table none of whose columns varies. RunError: `kept` is of
        other rows or settings.
        """
        frame = as_frame(self._array(X, reset=True))
        self._check(frame)
        seed = int(check_random_state(self.random_state).randint(2**31))
        variables = fit_variables(frame)
        x = torch.as_tensor(variables.bits(variables.levels(frame)))
        if validation_data is None:
            order = np.random.default_rng(seed).permutation(len(x))
            held = max(1, int(self.valid_fraction * len(x)))
            rows, valid = x[order[held:]], x[order[:held]]
        else:
            levels = variables.levels(as_frame(validation_data, list(frame.columns)))
            levels = levels[(levels != UNKNOWN).all(1)]
            rows, valid = x, torch.as_tensor(variables.bits(levels))
        if not len(valid):
            raise DataError("validation_data has no row without gaps that training rows lack")
        how = Training(
            rate=self.rate,
            batch=min(100, len(rows)),
            estimator=self.estimator,
            patience=self.patience,
            weight_noise=self.weight_noise,
            seconds=self.seconds,
            seed=seed,
        )
        found = search(rows, valid, variables.groups, how, say, stopping, kept)
        self.mixture_ = learn_orders(found.model, rows, valid, how, self.orders)
        self.n_features_in_ = frame.shape[1]
        self.columns_ = tuple(frame.columns)
        if isinstance(X, pd.DataFrame):
            self.feature_names_in_ = np.asarray(frame.columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.variables_ = variables
        self.model_ = found.model
        self.ledger_ = found.ledger
        self.steps_ = found.steps
        return self

    def _check(self, frame: pd.DataFrame) -> None:
        if len(frame) < FEWEST:
            raise DataError(
                f"X has n_samples={len(frame)}: a distribution needs at least {FEWEST} rows"
            )
        if not 0 < self.valid_fraction < 1:
            raise DataError(f"valid_fraction={self.valid_fraction}: give a share between 0 and 1")
        if self.orders < 1:
            raise DataError(f"orders={self.orders}: give at least 1")
        if self.samples < 2:
            raise DataError(f"samples={self.samples}: give at least 2")

    def score_samples(self, X: Any, return_error: bool = False) -> Any:
        """Log density of each row in nats, (rows,); with `return_error` also its standard error by
        sampling h. A gap where training rows had none is summed over, and so is a cell that cannot
        be read as a number. Numbers outside of the training rows' range are the less likely the
        farther they are (there the density does not integrate to 1).
        """
        frame = self._frame(X)
        levels, x = self._bits(frame)
        known = levels != UNKNOWN
        with own_draws(self._seed(), self.model_):
            likelihood = log_likelihood_of(self.mixture_, x, self.samples)
            log_prob, error = likelihood.log_prob.copy(), likelihood.error.copy()
            gaps = np.flatnonzero(~known.all(1))
            for row, one in zip(gaps, self._filled(x[gaps], known[gaps]), strict=True):
                log_prob[row] = one.log_prob
                error[row] = max(0.0, 1 / one.effective - 1 / self.samples) ** 0.5
        log_prob -= self.variables_.log_widths(levels).sum(1) + self.variables_.excess(frame)
        return (log_prob, error) if return_error else log_prob

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log density of rows."""
        return float(np.mean(self.score_samples(X)))

    def anomaly(self, X: Any) -> np.ndarray:
        """How unlikely each row is, in bits: what it would cost to send."""
        return np.asarray(-self.score_samples(X) / np.log(2))

    def column_bits(self, X: Any) -> pd.DataFrame:
        """What each column costs model_ given those before it and h, in bits, (rows, columns); what
        h costs is not among them. A gap that training rows did not have costs NaN.
        """
        frame = self._frame(X)
        levels, x = self._bits(frame)
        costs = []
        with own_draws(self._seed(), self.model_), torch.no_grad():
            for _ in range(_DRAWS if self.model_.stochastic else 1):
                h = self.model_.encode(x, bernoulli).h
                logits = self.model_.decoder(0)(x, self.model_.context(0, h))
                costs.append(-self.model_.groups.log_probs(logits, x))
        nats = torch.stack(costs).mean(0).numpy() + self.variables_.log_widths(levels)
        nats[levels == UNKNOWN] = np.nan
        names = [column.name for column in self.variables_.varying]
        return pd.DataFrame(nats / np.log(2), _index(X), names)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> pd.DataFrame:
        """Rows drawn from the distribution; a number within its bin is drawn uniformly."""
        check_is_fitted(self)
        seed = self._seed(random_state)
        with own_draws(seed, self.model_):
            bits = sample(self.mixture_, n_samples).numpy()
        draw = np.random.default_rng(seed)
        return self.variables_.frame(self.variables_.levels_of(bits), draw)

    def impute(self, X: Any, return_uncertainty: bool = False) -> Any:
        """X with its gaps filled by what is likeliest given the rest of the row; with
        `return_uncertainty` also how probable that was, NaN where there was no gap. What is filled
        is a gap in X, whether or not training rows had some.
        """
        frame = self._frame(X)
        levels, x = self._bits(frame)
        varying = self.variables_.varying
        missing = [np.isin(levels[:, k], (UNKNOWN, c.known)) for k, c in enumerate(varying)]
        gap = np.stack(missing, 1)
        known = ~gap
        out = frame.copy()
        chance = pd.DataFrame(np.nan, frame.index, frame.columns)
        rows = np.flatnonzero(gap.any(1))
        with own_draws(self._seed(), self.model_):
            guesses = self._filled(x[rows], known[rows])
        for group, column in enumerate(varying):
            own = gap[rows, group]
            if not own.any():
                continue
            shares = np.stack(
                [self._shares(f, group) for f, g in zip(guesses, own, strict=True) if g]
            )
            best = shares.argmax(1)
            out[column.name] = _put(out[column.name], rows[own], column.decode(best))
            chance.loc[rows[own], column.name] = shares[np.arange(len(best)), best]
        for constant in (column for column in self.variables_.columns if not column.bits):
            out[constant.name] = out[constant.name].where(
                out[constant.name].notna(), constant.levels[0]
            )
        for part in (out, chance):
            part.index = _index(X, part.index)
            part.columns = X.columns if isinstance(X, pd.DataFrame) else part.columns
        return (out, chance) if return_uncertainty else out

    def _shares(self, filled: Filled, group: int) -> np.ndarray:
        """Probability of each level that is a value."""
        column = self.variables_.varying[group]
        means = filled.means[self.model_.groups.slice(group)].double().clamp(0, 1).numpy()
        if column.bits == 1:
            means = np.array([1 - means[0], means[0]])
        # what is filled is a value of the table, no gap and nothing unheard of
        values = means[: column.known - column.other] + 1e-12
        return np.asarray(values / values.sum())

    def _filled(self, x: Tensor, known: np.ndarray) -> list[Filled]:
        return filled(self.mixture_, x, torch.as_tensor(known), self.samples)

    def _frame(self, X: Any) -> pd.DataFrame:
        check_is_fitted(self)
        frame = as_frame(self._array(X, reset=False), self.columns_)
        self.variables_.check(frame)
        for said in self.variables_.strange(frame):
            warnings.warn(said, stacklevel=3)
        return frame

    def _array(self, X: Any, reset: bool) -> Any:
        """A table as it is; an array, or what can be one, as scikit-learn checks it."""
        if isinstance(X, pd.DataFrame):
            return X
        return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def _bits(self, frame: pd.DataFrame) -> tuple[np.ndarray, Tensor]:
        levels = self.variables_.levels(frame)
        return levels, torch.as_tensor(self.variables_.bits(levels))

    def _seed(self, random_state: Any = None) -> int:
        state = self.random_state if random_state is None else random_state
        return int(check_random_state(state).randint(2**31))


def _put(cells: pd.Series, rows: np.ndarray, values: pd.Series) -> pd.Series:
    """With these values in some rows."""
    out = cells.astype(object)
    out.iloc[rows] = values.to_numpy()
    return out.infer_objects()


def _index(x: Any, other: Any = None) -> Any:
    """That of a table; of an array `other`."""
    return x.index if isinstance(x, pd.DataFrame) else other
