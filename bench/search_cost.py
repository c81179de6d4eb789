"""How long the sampler of our own takes to suggest: 500 trials, 20 dimensions; the goal is a second.

python bench/search_cost.py
"""

from __future__ import annotations

import time

import numpy as np
import optuna

from autotune.adapters.search.sampler import SurrogateSampler

TRIALS, DIMENSIONS, REPEATS = 500, 20, 5


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(0)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        f"d{k}": optuna.distributions.IntDistribution(1, 64, log=True)
        if k % 2
        else optuna.distributions.CategoricalDistribution(["a", "b", "c"])
        for k in range(DIMENSIONS)
    }
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=SurrogateSampler(seed=0))
    for number in range(TRIALS):
        params = {n: int(rng.integers(1, 65)) if int(n[1:]) % 2 else "abc"[rng.integers(3)] for n in space}
        runs = {"runs": 1.0 if number % 5 == 0 else -1.0}
        trial = optuna.trial.create_trial(params=params, distributions=space, values=rng.random(2).tolist())
        for name, value in runs.items():
            trial.set_constraint(name, value)
        study.add_trial(trial)
    seconds = []
    for _ in range(REPEATS):
        began, began_cpu = time.perf_counter(), time.process_time()
        trial_now = study.ask(space)
        seconds.append((time.perf_counter() - began, time.process_time() - began_cpu))
        study.tell(trial_now, state=optuna.trial.TrialState.FAIL)
    what = f"{TRIALS} trials, {DIMENSIONS} dimensions, 2 objectives"
    wall, cpu = np.median(seconds, axis=0)
    print(f"a suggestion at {what}: {wall:.2f} s, {cpu:.2f} s of a core (medians of {REPEATS})")


if __name__ == "__main__":
    main()
