"""DeepSpeed's buffers in shared memory on a CPU: 66 MiB a process, which it never takes back, so
that some two hundred starts would fill a machine of 24 GiB."""

from __future__ import annotations

import os
from pathlib import Path

from tats_fast.engine.distributed import World

BUFFER = "/dev/shm/deepspeed_allreduce_buffer_{user}_{address}_{port}_{rank}"
"""Where DeepSpeed 0.19 makes this process's."""


def unname_shared_buffers(world: World) -> None:
    """Take this process's buffer out of the file system, once all processes have opened it: its
    memory is then free when the last of them ends, also by SIGKILL."""
    if world.device.type != "cpu":
        return
    world.barrier()
    address, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    buffer = BUFFER.format(user=os.getuid(), address=address, port=port, rank=world.rank)
    Path(buffer).unlink(missing_ok=True)
