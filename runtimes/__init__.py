"""Container runtimes' protocols, each a thin translation to what the agent's local socket understands."""
