"""The training floor: arguments, the step, the trainer and the whole job."""
