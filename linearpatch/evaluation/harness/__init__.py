"""Tasks of lm_eval on models in memory: which tasks, their data, and the scoring of their requests."""
