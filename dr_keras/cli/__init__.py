"""The `dr-keras` command and its subcommands."""
