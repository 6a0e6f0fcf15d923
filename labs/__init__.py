"""Namespace labs: a topology, its resources and the steps that check it, as one YAML file, run for real.

`labs.run` has the entry points, `docs/labs.md` says how to write a lab.
"""
