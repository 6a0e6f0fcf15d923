"""What can be wrong with a policy before it reaches the kernel."""


class PolicyError(ValueError):
    """Base of everything that is refused because of what the caller asked for."""


class CompileError(PolicyError):
    """A port, group or rule that cannot be compiled: says which, what was found, and what to do."""


class TableFull(PolicyError):
    """A bounded table has no room for what was asked; nothing was written."""
