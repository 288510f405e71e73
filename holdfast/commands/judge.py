"""Try a judge on labeled answers."""

from holdfast import shell, trial


def main(words: list[str]) -> int:
    asked, chosen = shell.method("evals", "judge", trial.Rows, words)
    for line in trial.told(chosen, asked.rows):
        shell.say(line)
    return 0
