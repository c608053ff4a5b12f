"""What a process shares with its surroundings: progress, signals, other processes, memory."""
