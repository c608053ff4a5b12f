"""The run record and the tables made of it."""
