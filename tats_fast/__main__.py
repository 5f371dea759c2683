"""``python -m tats_fast``: the command ``tats-fast`` under a launcher that starts modules."""

from tats_fast.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
