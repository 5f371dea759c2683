"""The subcommands of ``tats-fast``, by subject; importing them loads nothing heavy.

What a command computes belongs in the other folders; here are command lines and exit codes only.
"""
