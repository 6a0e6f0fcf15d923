"""The rule-flow engine in plain Python over parsed headers: no speed, all clarity. The BPF engine's oracle.

`docs/engine.md` is the contract; what it leaves open the modules decide, each in its docstring.
"""

from vfp.reference.engine import Engine, Result, Verdict
from vfp.reference.explain import Explanation, explain, explain_frame, probe
from vfp.reference.zones import Hook

__all__ = ["Engine", "Explanation", "Hook", "Result", "Verdict", "explain", "explain_frame", "probe"]
