"""Counts and times in few characters."""


def short(value: float | None) -> str:
    """A count in few characters: 960, 42.2 k, 3.7 T."""
    if value is None:
        return "–"
    for unit, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def operations(value: float | None) -> str:
    """So many floating-point operations: 0 FLOPs, 3.7 TFLOPs."""
    said = short(value)
    return f"{said}FLOPs" if said[-1].isalpha() else f"{said} FLOPs"


def lasting(seconds: float) -> str:
    """A time in its two largest units: 42 s, 3 min 12 s, 2 h 5 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    for unit, name, below, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit} {name}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"
