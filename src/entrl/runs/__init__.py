"""What a run is besides training: its folder, its lock, its end."""
