"""The learning proofs: which configuration must reach which return, with how much play and time."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.record import Goals


@dataclass(frozen=True)
class Subject:
    """One learning proof."""

    name: str
    """Also the name of the result and of the picture."""
    title: str
    config: str
    """Path in the repository."""
    threshold: float
    """Mean return that must be reached, in unclipped rewards."""
    random_return: float
    """Mean return of random play."""
    seeds: tuple[int, ...]
    frames_budget: int | None
    """Environment frames that no seed may have played more of at its end; None where only time counts."""
    limit_seconds: float
    """A run that has not ended by itself is stopped (and then counts as it is) after this wall-clock."""
    evaluation_episodes: int
    """Greedy episodes played on the final parameters."""
    seconds_to_threshold_max: float | None = None
    """Bound on the slowest seed's wall-clock, start of the processes included."""
    seconds_to_threshold_median: float | None = None
    overrides: tuple[str, ...] = ()
    """Command line behind the configuration file."""
    control: bool = False
    """A control, which must stay *below* the threshold: what its ``overrides`` take away is what learning hangs on."""

    @property
    def goals(self) -> Goals:
        """Bounds on the metrics of :func:`benchmarks.learning_summary.summarize`.

        The lower end of the interval must show nine tenths of the way from random play to the threshold: a mean that
        one lucky seed lifts is no proof. Of a control, the upper end must lie below the threshold.
        """
        if self.control:
            return {"iqm_ci95_high": {"at_most": self.threshold}, "num_seeds": {"at_least": len(self.seeds)}}
        goals: dict[str, dict[str, float]] = {
            "iqm": {"at_least": self.threshold},
            "iqm_ci95_low": {"at_least": round(self.random_return + 0.9 * (self.threshold - self.random_return), 3)},
            "num_seeds": {"at_least": len(self.seeds)},
        }
        upper = {
            "frames_max": self.frames_budget,
            "seconds_to_threshold_max": self.seconds_to_threshold_max,
            "seconds_to_threshold_median": self.seconds_to_threshold_median,
        }
        goals |= {name: {"at_most": bound} for name, bound in upper.items() if bound is not None}
        return goals


SUBJECTS: dict[str, Subject] = {
    "catch": Subject(
        name="catch_apex_dqn",
        title="Ape-X DQN on Catch",
        config="configs/catch_apex_dqn.yaml",
        threshold=0.9,
        random_return=-0.6,
        seeds=(1,),
        frames_budget=30_000,
        limit_seconds=300.0,
        evaluation_episodes=100,
    ),
    "cartpole": Subject(
        name="cartpole_apex_dqn",
        title="Ape-X DQN on CartPole-v1",
        config="configs/cartpole_apex_dqn.yaml",
        threshold=475.0,
        random_return=22.0,
        seeds=(1, 2, 3, 4, 5),
        frames_budget=100_000,
        limit_seconds=1200.0,
        evaluation_episodes=20,
    ),
    "minatar_breakout": Subject(
        name="minatar_breakout_apex_dqn",
        title="Ape-X DQN on MinAtar Breakout-v1",
        config="configs/minatar_breakout_apex_dqn.yaml",
        threshold=8.0,
        random_return=0.39,
        seeds=(1, 2, 3),
        frames_budget=2_000_000,
        limit_seconds=7200.0,
        evaluation_episodes=50,
    ),
    "pendulum_apex_dpg": Subject(
        name="pendulum_apex_dpg",
        title="Ape-X DPG on Pendulum-v1",
        config="configs/pendulum_apex_dpg.yaml",
        threshold=-200.0,
        random_return=-1193.0,
        seeds=(1, 2, 3, 4, 5),
        frames_budget=30_000,
        limit_seconds=1800.0,
        evaluation_episodes=20,
    ),
    "pendulum_d4pg": Subject(
        name="pendulum_d4pg",
        title="D4PG on Pendulum-v1",
        config="configs/pendulum_d4pg.yaml",
        threshold=-250.0,
        random_return=-1193.0,
        seeds=(1, 2, 3, 4, 5),
        frames_budget=30_000,
        limit_seconds=1800.0,
        evaluation_episodes=20,
    ),
    "pendulum_d4pg_narrow": Subject(
        name="pendulum_d4pg_narrow",
        title="D4PG on Pendulum-v1, atoms from -1 to 0 (control)",
        config="configs/pendulum_d4pg.yaml",
        threshold=-600.0,
        random_return=-1193.0,
        seeds=(1, 2, 3, 4, 5),
        frames_budget=30_000,
        limit_seconds=1800.0,
        evaluation_episodes=20,
        overrides=("--algorithm.critic.v-min", "-1", "--algorithm.critic.v-max", "0"),
        control=True,
    ),
    "cartpole_swingup_d4pg": Subject(
        name="cartpole_swingup_d4pg",
        title="D4PG on cartpole-swingup of the control suite",
        config="configs/cartpole_swingup_d4pg.yaml",
        threshold=700.0,
        random_return=20.0,
        seeds=(1,),
        frames_budget=200_000,
        limit_seconds=5400.0,
        evaluation_episodes=20,
    ),
    "pong": Subject(
        name="pong_apex_dqn",
        title="Ape-X DQN on Pong, two CPU cores",
        config="configs/pong_small.yaml",
        threshold=18.0,
        random_return=-20.7,
        seeds=(1, 2),
        frames_budget=None,
        limit_seconds=3600.0,
        evaluation_episodes=10,
        seconds_to_threshold_max=3600.0,
        seconds_to_threshold_median=2700.0,
    ),
}
