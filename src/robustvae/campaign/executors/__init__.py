"""Who computes the tasks of a campaign, a file each."""
