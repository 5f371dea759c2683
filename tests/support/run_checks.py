"""What a run left behind, compared bit by bit; and a watch for steps that wait for the device."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tats_fast.run_folder import read_tensors
from tats_fast.weights_file import read_state


def weights(run_dir, step):
    folder = run_dir / "checkpoints" / f"step_{step:06d}"
    model = read_state(folder / "model.safetensors")
    trainer = read_tensors(folder / "trainer.pt")
    optimizer = read_tensors(folder / "optimizer.pt")
    return {"model": model, "trainer": trainer, "optimizer": optimizer}


def assert_identical(one, two, where=""):
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), f"{where} differs"
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_identical(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_identical(a, b, f"{where}[{index}]")
    else:
        assert one == two, f"{where}: {one} != {two}"


class RefuseToWait(TorchDispatchMode):
    """Fails on anything whose result or shape the host would have to ask the device for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in self.WAITING, f"the step waits for the device in {name}"
        if name in ("index", "index_put", "index_put_"):
            kinds = {i.dtype for i in args[1] if i is not None}
            assert torch.bool not in kinds, "a boolean index has a shape that only the device knows"
        if name == "repeat_interleave":
            assert (kwargs or {}).get("output_size") is not None
        return func(*args, **(kwargs or {}))
