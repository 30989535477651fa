"""What is refused before training, in words: options, controllers, schedules and engines that do not go together."""
