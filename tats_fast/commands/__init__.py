"""One module per subcommand of ``tats-fast``: ``add`` registers it and imports nothing heavy."""
