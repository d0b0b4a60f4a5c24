"""`bitagent bench train` at smoke scale: it runs both loops as the stages do, and reports every figure."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from bitagent_cli.app import app


def test_bench_train_measures_both_loops() -> None:
    command = ["bench", "train", "--preset", "walker", "--scale", "smoke", "--device", "cpu", "--updates", "1"]
    done = CliRunner().invoke(app, [*command, "--set", "behave.actor_critic.imagination=1"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for loop in ("pretrain", "world_model", "dynamics", "behave"):
        assert found[loop]["ms"] > 0 and found[loop]["tflops"] >= 0
    assert found["pretrain"]["batch"] == [4, 8] and found["behave"]["imagined_steps_per_second"] > 0
    assert {"encoder", "decoder", "joint_behavior_rollouts", "optimizer", "data_wait"} <= set(found["parts_ms"])
    shares = found["parts_share_of_matmul_ceiling"]
    assert set(shares) == set(found["parts_ms"]) - {"optimizer", "data_wait"} and min(shares.values()) > 0
    assert set(found["behave_parts_ms"]) == {"data", "imagination"} and found["behave"]["decisions_per_second"] > 0
