"""What somebody writes with `import holdfast`, for `make types` to check; no test runs it."""

from pathlib import Path

from holdfast import LM, At, Attack, Audited, Cost, Defense, Hand, Log, Verdict, audit, harden


class Fade(Attack):
    axis = "share"

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        at(Cost(severity=0.5))


class Scale(Defense):
    by: float = 0.9

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        log.metrics(by=self.by)


hardened: Path = harden(Scale(by=0.5), LM.load("m"), out="h")
run: Audited = audit(hardened, twin="m", attacks=[Fade(), "prefill"], controls={"calm": "noise"}, seeds=[0])
said: Verdict = run.verdict("released", "fade")
audit("recipe.toml", tier="smoke", utility=3)  # type: ignore[arg-type]
harden("lox", "m")  # type: ignore[call-arg]
run.nothing  # type: ignore[attr-defined]  # noqa: B018
