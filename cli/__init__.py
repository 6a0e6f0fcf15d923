"""The `sluice` command: what users hold in their hands."""
