"""Between an action chunk and a command: sampling, stitching, safety, deadlines. No ROS, no simulator, no torch."""
