"""Robot contracts: one YAML file a robot, read with `contracts.load_robot(name)`."""
