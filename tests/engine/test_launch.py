"""Runs on several hosts and under SLURM: the script that is shipped, with a stand-in for SLURM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import DEVICE, FIRST_ADDRESS, two_hosts
from project import ROOT
from run_processes import BIN, TRAIN, finish, steps, wait_for

from tats_fast.commands.training import resolve_engine
from tats_fast.config import ConfigError, save_config
from tats_fast.run_folder import list_checkpoints

SCRIPT = ROOT / "configs" / "launch" / "slurm.sh"
SRUN = """#!{python}
import os, signal, subprocess, sys
command = [a for i, a in enumerate(sys.argv[1:]) if "bash" in sys.argv[1 : i + 2]]
tasks = [
    subprocess.Popen(
        command,
        env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NTASKS": "2"}},
    )
    for i in range(2)
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {told}; fi
"""


class Slurm:
    """A folder of commands called as SLURM's, which run two tasks on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, folder / "told"
        folder.mkdir()
        self._write("srun", SRUN.format(python=sys.executable))
        self._write("scontrol", SCONTROL.format(told=self.told))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen:
        """The shipped script as the job's."""
        env = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        job = str(os.getpid() % 30000 + len(list(self.folder.iterdir())))
        env |= {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "here", "PYTHON": sys.executable}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )

    @property
    def requeued(self) -> bool:
        """Whether a job was put back into the queue."""
        return self.told.exists() and "requeue" in self.told.read_text()


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path / "slurm")


@pytest.mark.slow
def test_a_job_whose_time_ends_goes_back_and_goes_on(slurm, run_config, tmp_path):
    config = run_config("run", train={"log_every": 1, "steps": 100_000, "checkpoint_every": 10**6})
    save_config(config, tmp_path / "run.yaml")
    arguments = ("pretrain", "--config", str(tmp_path / "run.yaml"))
    job = slurm.start(*arguments)
    wait_for(lambda: len(steps(tmp_path / "run")) > 2, job)
    job.send_signal(signal.SIGUSR1)
    finish(job)
    (saved,) = list_checkpoints(tmp_path / "run")
    assert slurm.requeued and saved.name == f"step_{steps(tmp_path / 'run')[-1]:06d}"
    slurm.told.unlink()
    again, before = slurm.start(*arguments), steps(tmp_path / "run")
    wait_for(lambda: len(steps(tmp_path / "run")) > len(before) + 1, again)
    again.send_signal(signal.SIGTERM)  # cancelled: nobody asks for another round
    output, _ = again.communicate(timeout=90)
    assert again.returncode == 143 and not slurm.requeued, output[-2000:]
    after = steps(tmp_path / "run")
    assert after == list(range(after[0], after[0] + len(after))) and "continuing from" in output


def test_a_job_that_fails_does_not_go_back(slurm):
    job = slurm.start("pretrain", "no.such.key=1")
    output, _ = job.communicate(timeout=90)
    assert job.returncode == 2 and not slurm.requeued
    assert output.count("unknown key") == 1 and "Traceback" not in output


@pytest.mark.parametrize(
    ("setting", "value"), [("zero_stage", 2), ("zero_stage", 3), ("deepspeed_config", "ds.json")]
)
def test_zero_is_not_left_out_in_silence(tiny_config, monkeypatch, setting, value):
    """Under ``torchrun`` and ``srun`` nothing says DeepSpeed but the setting of that name."""

    def asked(**engine):
        return tiny_config(distributed={setting: value, **engine})

    assert resolve_engine(asked(), by_deepspeed=False).distributed.engine == "ddp"  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = rf"distributed\.{setting}={value}: .* DDP; add distributed\.engine=deepspeed"
    with pytest.raises(ConfigError, match=words):
        resolve_engine(asked(), by_deepspeed=False)
    assert resolve_engine(asked(), by_deepspeed=True).distributed.engine == "deepspeed"
    for engine in ("ddp", "deepspeed"):
        told = resolve_engine(asked(engine=engine), by_deepspeed=False)
        assert told.distributed.engine == engine


@pytest.fixture
def hosts():
    with two_hosts() as names:
        yield names


@pytest.mark.slow
def test_two_hosts_train_one_model(hosts, run_config, tmp_path):
    """``torchrun`` on two hosts that share nothing but a network and a file system."""
    save_config(run_config("run", train={"log_every": 1, "steps": 3}), tmp_path / "run.yaml")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": DEVICE}
    env["PATH"] = f"{BIN}:{os.environ['PATH']}"
    runs = []
    for number, host in enumerate(hosts):
        launcher = [
            *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes=2", f"--node_rank={number}", "--nproc_per_node=1"),
            *(f"--master_addr={FIRST_ADDRESS}", "--master_port=29611"),
        ]
        command = [*launcher, TRAIN, "--config", str(tmp_path / "run.yaml")]
        runs.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
            )
        )
    outputs = [finish(run) for run in runs]
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert "step 3/3" in outputs[0] and "step 3/3" not in outputs[1]
