"""LinearPatch: remove layers from a language model, patch the gap with one small matrix, measure what is left.

`linearpatch.config.compose_experiment` builds an experiment, `linearpatch.run.run` runs it.
"""
