"""What each process would do again for itself when it loads its first model, done once where processes are forked from.

`processes.prepare` imports it there, by name. Transformers compiles a thousand patterns, for all names that checkpoints ever
gave their weights, before it loads a first model: half of the time of a small cell.
"""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("")
