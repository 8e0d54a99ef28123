"""Measures of an audit, one file each: columns of the rows, and how they are computed."""
