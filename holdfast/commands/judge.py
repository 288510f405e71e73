"""Try a judge on labeled answers."""

from pathlib import Path

from holdfast import policy, shell, speech, trial
from holdfast.quiet import quiet


def main(words: list[str]) -> int:
    quiet()
    if words and policy.written(Path(words[0])):
        asked = speech.parse(trial.Rows, f"judge {words[0]}", words[1:], "The judge of a policy.")
        chosen = policy.read(Path(words[0])).eval(words[0])
    else:
        asked, chosen = shell.method("evals", "judge", trial.Rows, words)
    for line in trial.told(chosen, asked.rows):
        speech.say(line)
    return 0
