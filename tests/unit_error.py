"""Values whose mean is 0 and whose standard error is 1."""

import math


def of_unit_error(df):
    """df + 1 values of mean 0 and standard error 1: the half-width of their interval is the t quantile."""
    values = [float(i) for i in range(df + 1)]
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / df / len(values))
    return [(v - mean) / error for v in values]
