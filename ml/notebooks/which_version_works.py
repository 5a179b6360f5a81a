import marimo

app = marimo.App(app_title="Which version works, and for whom")


@app.cell
def _():
    from collections import Counter, defaultdict

    import marimo as mo
    import matplotlib.pyplot as plt

    from ml.experiments.comparison import Stratum, difference, sum_pair
    from ml.experiments.policies import POLICIES
    from ml.experiments.statistics import Sample
    from ml.experiments.thompson import RewardHistory
    from ml.features.segments import segments
    from ml.simulation.people import LISTED_VERSIONS, PERSONAS, visits

    return (
        Counter,
        LISTED_VERSIONS,
        PERSONAS,
        POLICIES,
        RewardHistory,
        Sample,
        Stratum,
        Counter,
        defaultdict,
        difference,
        mo,
        plt,
        segments,
        sum_pair,
        visits,
    )


@app.cell
def _(mo):
    mo.md(
        """
        # Which version works, and for whom

        Simulated users with three personas, each of which prefers another prompt version. Versions are drawn
        uniformly for each tip, and the reward of a tip is 1 if it helps. The comparison is the one of the
        reward page: overlap-weighted martingale differences, whose intervals hold at every look.
        """
    )
    return


@app.cell
def _():
    days, users, seed = 28, 300, 1
    baseline, other = "v1", "v2-mentor"
    return baseline, days, other, seed, users


@app.cell
def _(LISTED_VERSIONS, POLICIES, RewardHistory, Sample, Stratum, days, defaultdict, seed, segments, users, visits):
    policy = POLICIES["uniform"]
    options = policy.distribution(dict.fromkeys(LISTED_VERSIONS, 1.0), RewardHistory())
    rewards = defaultdict(lambda: defaultdict(Sample))  # by segment, then by (day, version)
    for day in range(days):
        for visit in visits(users, day, seed):
            version = policy.draw(options, visit.user_id, [visit.id])[0].option
            reward = float(visit.helps(version))
            for segment in ("all users", *segments(visit.signals)):
                rewards[segment][day, version] += Sample(1, reward, reward**2)
    strata = {
        segment: [Stratum(day, options, version, sample) for (day, version), sample in cells.items()]
        for segment, cells in rewards.items()
    }
    return (strata,)


@app.cell
def _(baseline, days, difference, other, strata, sum_pair):
    looks = [
        difference(sum_pair([each for each in strata["all users"] if each.day <= day], baseline, other), alpha=0.05)
        for day in range(days)
    ]
    by_segment = {
        segment: difference(sum_pair(of_segment, baseline, other), alpha=0.05 / len(strata))
        for segment, of_segment in strata.items()
        if sum(each.rewards.n for each in of_segment) >= 500
    }
    return by_segment, looks


@app.cell
def _(PERSONAS, baseline, by_segment, looks, other, plt):
    figure, (over_time, for_whom) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    truth = sum(each.preference(other) - each.preference(baseline) for each in PERSONAS) / len(PERSONAS)
    over_time.fill_between(range(len(looks)), [look.low for look in looks], [look.high for look in looks], alpha=0.3)
    over_time.plot([look.estimate for look in looks])
    over_time.axhline(truth, color="black", linestyle=":", label="the true difference")
    over_time.axhline(0, color="grey", linewidth=0.5)
    over_time.set(
        title=f"{other} minus {baseline}, at every look", xlabel="day", ylabel="difference of the mean reward"
    )
    over_time.set_ylim(-0.5, 0.5)
    over_time.legend()
    names = sorted(by_segment, key=lambda name: by_segment[name].estimate)
    for row, name in enumerate(names):
        for_whom.hlines(row, by_segment[name].low, by_segment[name].high)
        for_whom.plot(by_segment[name].estimate, row, "o", color="C0")
    for_whom.axvline(0, color="grey", linewidth=0.5)
    for_whom.set_yticks(range(len(names)), names)
    for_whom.set(title="For whom: limits for all segments at once", xlabel="difference of the mean reward")
    figure
    return (truth,)


if __name__ == "__main__":
    app.run()
