"""Training: recipes, optimizers, schedules, the loop, trackers."""
