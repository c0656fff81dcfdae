"""The value of a policy from whole trajectories of another one."""
