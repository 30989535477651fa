"""Statistics of finished runs: intervals, paired differences, learning curves, the law of entropy and its forecasts."""
