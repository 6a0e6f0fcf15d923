"""`python -m runtimes.cni`: the plug-in by its module; `sluice-cni install` makes something that starts faster."""

from runtimes.cni.main import main

main()
