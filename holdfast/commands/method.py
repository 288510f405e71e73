"""Pool whole runs into a verdict on a method."""

import json

from holdfast import disk, pooled, speech, verdict
from holdfast.run import Run


def main(words: list[str]) -> int:
    options = speech.parse(pooled.Pooling, "method", words)
    runs = [Run.open(folder) for folder in options.runs]
    found = pooled.conclude(
        [pooled.Audited(f"{one.folder}", one.read("recipe.json"), verdict.judge(one)) for one in runs]
    )
    content = json.dumps([one.model_dump(mode="json") for one in found], indent=1, ensure_ascii=False)
    with disk.explained(options.out):
        disk.write(options.out, f"{content}\n")
    for one in found:
        for said in (*[each.sentence for each in one.verdicts], one.sentence):
            speech.say(said)
    speech.say(f"method: {options.out}")
    return 0
