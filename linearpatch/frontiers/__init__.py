"""Every size of one or several recipes from one pass: how far a model can be pruned."""
