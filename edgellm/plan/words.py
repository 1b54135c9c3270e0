"""Times and sizes for people."""

from edgellm.plan.needs import SectionNeed


def ms(seconds: float) -> str:
    """Return a token's time for people: three digits of milliseconds."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def size(n: int) -> str:
    """Return bytes for people: decimal GB, or MB below a tenth of one."""
    return f"{n / 1e9:.2f} GB" if abs(n) >= 100_000_000 else f"{n / 1e6:.1f} MB"


def describe(need: SectionNeed) -> str:
    """Return what a section needs, in all and by purpose."""
    state = f"state {size(need.state)}, " if need.state else ""
    parts = f"weights {size(need.weights)}, KV {size(need.kv)}, {state}activations {size(need.activations)}"
    return f"{size(need.total)} ({parts})"
