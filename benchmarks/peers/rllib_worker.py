"""RLlib's Ape-X DQN on this machine, asked for windows of training. Argument: a JSON object of settings.

The environment is made as ours is (``env`` in the settings), the network is ours in its sizes (convolutions without
padding, then one hidden layer for each stream of the dueling head), everything else is RLlib's default for Ape-X. Its
actors and its learner rest between windows, because nobody asks them for more.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from typing import Any

import ale_py
import gymnasium
import numpy as np
import ray  # type: ignore[import-not-found]
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStack
from ray.rllib.algorithms.apex_dqn import ApexDQNConfig  # type: ignore[import-not-found]
from ray.rllib.models import ModelCatalog  # type: ignore[import-not-found]
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2  # type: ignore[import-not-found]
from ray.tune.registry import register_env  # type: ignore[import-not-found]
from torch import nn

from benchmarks.peers.worker import serve

KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
#: Replay, driver and learner beside the rollout workers; ray counts cores, it does not bind them.
OTHER_CPUS = 4
ITERATION_SECONDS = 2.0
OBJECT_STORE_BYTES = 1 << 30


class ChannelsLast(gymnasium.ObservationWrapper):
    """[4, 84, 84] as the [84, 84, 4] that RLlib takes for a picture."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8)

    def observation(self, observation: Any) -> Any:
        return np.ascontiguousarray(np.moveaxis(np.asarray(observation), 0, -1))


def make_env(settings: dict[str, Any]) -> Any:
    """One Atari game with the preprocessing of the settings."""
    assert ale_py.__version__  # registers the games
    game = gymnasium.make(settings["game"], frameskip=1, repeat_action_probability=settings["sticky"])
    preprocessed = AtariPreprocessing(game, noop_max=settings["noop_max"], frame_skip=4, terminal_on_life_loss=False)
    return ChannelsLast(FrameStack(preprocessed, 4))


class Torso(TorchModelV2, nn.Module):  # type: ignore[misc]
    """Convolutions without padding, flattened; RLlib puts the dueling head behind it."""

    def __init__(self, space: Any, actions: Any, outputs: int, config: Any, name: str) -> None:
        TorchModelV2.__init__(self, space, actions, outputs, config, name)
        nn.Module.__init__(self)
        # RLlib's DQN wraps the class and hands on nothing but the configuration.
        filters: list[int] = config["custom_model_config"]["filters"]
        layers: list[nn.Module] = []
        channels = 4
        for filters_out, kernel, stride in zip(filters, KERNELS, STRIDES, strict=False):
            layers += [nn.Conv2d(channels, filters_out, kernel, stride), nn.ReLU()]
            channels = filters_out
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, inputs: Any, state: Any, lengths: Any) -> Any:
        """[B, features]."""
        return self.layers(inputs["obs"].float().permute(0, 3, 1, 2) / 255.0), state


def features_of(filters: list[int]) -> int:
    """Values behind the convolutions."""
    size = 84
    for kernel, stride in list(zip(KERNELS, STRIDES, strict=False))[: len(filters)]:
        size = (size - kernel) // stride + 1
    return filters[-1] * size * size


def make_algorithm(settings: dict[str, Any]) -> Any:
    """Built, its actors started."""
    filters = settings["filters"]
    config = (
        ApexDQNConfig()
        .environment("atari", env_config=settings)
        .framework("torch")
        .resources(num_gpus=0)
        .rollouts(
            num_rollout_workers=settings["workers"],
            num_envs_per_worker=settings["lanes"],
            rollout_fragment_length=50,
            preprocessor_pref=None,
        )
        .training(
            train_batch_size=settings["batch_size"],
            num_steps_sampled_before_learning_starts=settings["min_items"],
            dueling=True,
            double_q=True,
            hiddens=settings["hidden"],
            n_step=settings["n_steps"],
            training_intensity=None,
            model={
                "custom_model": "torso",
                "custom_model_config": {"filters": filters},
                "fcnet_hiddens": [features_of(filters)],
            },
            replay_buffer_config={
                "type": "MultiAgentPrioritizedReplayBuffer",
                "capacity": settings["capacity"],
                "no_local_replay_buffer": True,
                "replay_buffer_shards_colocated_with_driver": True,
                "prioritized_replay_alpha": 0.6,
                "prioritized_replay_beta": 0.4,
                "prioritized_replay_eps": 1e-6,
            },
        )
        .reporting(min_time_s_per_iteration=ITERATION_SECONDS, min_sample_timesteps_per_iteration=0)
    )
    config.optimizer["num_replay_buffer_shards"] = 1
    return config.build()


def main() -> None:
    settings = json.loads(sys.argv[1])
    register_env("atari", make_env)
    ModelCatalog.register_custom_model("torso", Torso)
    ray.init(
        num_cpus=settings["workers"] + OTHER_CPUS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        # Replay lies in its actor's own memory; the store holds what is under way. Told how much there is, ray does not
        # refuse to start where others use memory as well.
        object_store_memory=OBJECT_STORE_BYTES,
        _memory=OBJECT_STORE_BYTES,
    )
    algorithm = make_algorithm(settings)
    totals = np.zeros(2)

    def train() -> None:
        counters = algorithm.train()["counters"]
        totals[:] = counters["num_env_steps_sampled"], counters.get("num_env_steps_trained", 0)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request.get("until_trained"):
            while totals[1] < request["until_trained"]:
                train()
        if "seconds" not in request:
            parameters = sum(value.size for value in algorithm.get_policy().get_weights().values())
            return {
                "versions": {"ray": metadata.version("ray"), "torch": torch.__version__},
                "parameters": int(parameters),
            }
        before, started = totals.copy(), time.perf_counter()
        while time.perf_counter() - started < request["seconds"]:
            train()
        steps, samples = (totals - before) / (time.perf_counter() - started)
        return {"env_steps": steps, "samples": samples}

    serve(answer)
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
