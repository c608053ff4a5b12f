"""What can be learnt from the dense model on calibration tokens: statistics, losses, gradients."""
