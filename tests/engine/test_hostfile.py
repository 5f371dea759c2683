"""DeepSpeed's launcher on two hosts of a hostfile, with stand-ins for ssh and pdsh alone."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from children import gone
from hosts import DEVICE, logins, two_hosts
from run_processes import BIN, finish, ranks_below, steps, wait_for

from tats_fast.config import save_config
from tats_fast.run_folder import damage, list_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(run_config, tmp_path):
    """Start ``deepspeed --hostfile`` for a run on two hosts, one process each."""
    with two_hosts() as hosts, logins(hosts, tmp_path / "logins") as folder:
        (tmp_path / "hosts").write_text("".join(f"{host} slots=1\n" for host in hosts))
        # What the other hosts shall know of the environment (docs/distributed.md).
        known = {"GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}
        known["PATH"] = f"{BIN}:{folder}/bin:{os.environ['PATH']}"
        known |= {k: v for k, v in os.environ.items() if k == "TORCH_EXTENSIONS_DIR"}
        lines = [f"{name}={value}\n" for name, value in known.items()]
        (tmp_path / ".deepspeed_env").write_text("".join(lines))

        def begin(**train):
            config = run_config("run", train={"log_every": 1, "checkpoint_every": 10**6, **train})
            save_config(config, tmp_path / "run.yaml")
            return subprocess.Popen(
                [
                    *(BIN / "deepspeed", "--hostfile", "hosts", "--module", "tats_fast"),
                    *("pretrain", "--config", "run.yaml", "distributed.zero_stage=2"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PATH": f"{folder}:{BIN}:{os.environ['PATH']}"},
                cwd=tmp_path,
            )

        yield begin


def test_two_hosts_train_one_model(launch, tmp_path):
    output = finish(launch(steps=3))
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert output.count("step 3/3") == 1, "the first process alone reports"
    (last,) = list_checkpoints(tmp_path / "run")
    assert damage(last) is None and last.name == "step_000003"


def endless(launch, run):
    process = launch(steps=100_000)
    wait_for(lambda: len(steps(run)) >= 2, process, seconds=200)
    ranks = ranks_below(process.pid, "tats_fast")
    assert len(ranks) == 2
    return process, ranks


def test_sigterm_to_the_launcher_saves_and_ends_both_hosts(launch, tmp_path):
    process, ranks = endless(launch, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    assert all(gone(pid, within=40) for pid in ranks)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 1, output  # DeepSpeed's own, whatever its processes say
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert damage(checkpoint) is None
    assert checkpoint.name == f"step_{steps(tmp_path / 'run')[-1]:06d}"


def test_a_rank_killed_on_the_second_host_ends_both(launch, tmp_path):
    process, ranks = endless(launch, tmp_path / "run")
    os.kill(ranks[1], signal.SIGKILL)
    assert all(gone(pid, within=60) for pid in ranks)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None), output
