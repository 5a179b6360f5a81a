import marimo

app = marimo.App(app_title="What forgetting does")


@app.cell
def _():
    from functools import reduce
    from operator import add

    import marimo as mo
    import matplotlib.pyplot as plt
    import numpy as np

    from ml.experiments.exploration import SquareCB
    from ml.experiments.linear import DayAdjustedStatistics, fit
    from ml.experiments.regression_statistics import RegressionStatistics
    from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
    from ml.pipelines.training import fit_policy
    from ml.simulation.people import LISTED_VERSIONS, visits
    from ml.simulation.scenarios import SCENARIOS

    return (
        CONTEXT_ENCODER,
        DayAdjustedStatistics,
        LISTED_VERSIONS,
        RegressionStatistics,
        SCENARIOS,
        SquareCB,
        add,
        candidate_encoder,
        candidate_row,
        fit,
        fit_policy,
        mo,
        np,
        plt,
        reduce,
        visits,
    )


@app.cell
def _(mo):
    mo.md(
        """
        # What forgetting does

        On one day all users change their preferences. Statistics of days are additive, so a model of any window
        of days is a sum and a fit. Three policies learn every night from uniform draws: from all days, from the
        last seven, and from the window that predicts the newest days best, which is what `tips train` does.
        """
    )
    return


@app.cell
def _(SCENARIOS):
    days, change, users, seed = 32, 14, 120, 3
    scenario = next(each for each in SCENARIOS.values() if each.preferences_change_on is None)
    return change, days, scenario, seed, users


@app.cell
def _(LISTED_VERSIONS, change, days, np, scenario, seed, users, visits):
    from dataclasses import replace

    changing = replace(scenario, preferences_change_on=change)
    traffic = [visits(users, day, seed, changing) for day in range(days)]
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(LISTED_VERSIONS), size=len(of_day)) for of_day in traffic]
    return drawn, traffic


@app.cell
def _(
    CONTEXT_ENCODER,
    DayAdjustedStatistics,
    LISTED_VERSIONS,
    RegressionStatistics,
    candidate_encoder,
    candidate_row,
    drawn,
    np,
    traffic,
):
    encoder = candidate_encoder(LISTED_VERSIONS)
    rows = encoder.encode_rows([candidate_row(version, None) for version in LISTED_VERSIONS])
    contexts = [CONTEXT_ENCODER.encode_rows([visit.signals for visit in of_day]) for of_day in traffic]
    statistics = {}
    for _day, (_visits, _chosen) in enumerate(zip(traffic, drawn, strict=True)):
        _rewards = np.array(
            [float(visit.helps(LISTED_VERSIONS[index])) for visit, index in zip(_visits, _chosen, strict=True)]
        )
        statistics[_day] = DayAdjustedStatistics.of_day(
            RegressionStatistics.from_rows(
                CONTEXT_ENCODER.columns, encoder.columns, contexts[_day], rows[_chosen], _rewards
            )
        )
    return contexts, rows, statistics


@app.cell
def _(LISTED_VERSIONS, add, fit, fit_policy, reduce, statistics):
    def model_of(name, night):
        """Return the model that a policy has after a night."""
        known = {day: each for day, each in statistics.items() if day <= night}
        if name == "the best window":
            return fit_policy(known, name="tips", versions=LISTED_VERSIONS, trained_until=86_400.0 * night).model
        return fit(reduce(add, [each for day, each in known.items() if name == "all days" or day > night - 7]))

    names = ("all days", "the last 7 days", "the best window")
    return model_of, names


@app.cell
def _(LISTED_VERSIONS, SquareCB, contexts, days, model_of, names, np, rows, traffic):
    evaluated = range(1, days, 2)
    shares = {name: [] for name in names}  # of what the best version of each visit would earn, by day
    for _name in names:
        for _day in evaluated:
            _model, _explore = model_of(_name, _day - 1), SquareCB(10.0 * np.sqrt(1_000))
            _earned = _best = 0.0
            for _visit, _context in zip(traffic[_day], contexts[_day], strict=True):
                _expected = np.array([_visit.persona.preference(version) for version in LISTED_VERSIONS])
                _earned += _explore.distribution(np.clip(_model.predict(_context, rows), 0, 1)) @ _expected
                _best += _expected.max()
            shares[_name].append(_earned / _best)
    return evaluated, shares


@app.cell
def _(change, evaluated, plt, shares):
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for _name, _of_days in shares.items():
        axes.plot(evaluated, _of_days, label=_name)
    axes.axvline(change, color="black", linestyle=":", label="preferences change")
    axes.set(title="Share of the reward of an oracle", xlabel="day", ylabel="share", ylim=(0.4, 1))
    axes.legend()
    figure
    return


if __name__ == "__main__":
    app.run()
