"""What the trainers do alike: rewards, loss, controllers' hooks, row columns, checkpoints, logs."""
