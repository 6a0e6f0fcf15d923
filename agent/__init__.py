"""One host: session with the controller, reconcile goal state into the kernel, report back."""
