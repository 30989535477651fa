"""TRL glue: the trainers, their options and their batch arithmetic."""
