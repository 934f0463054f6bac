"""What runs on the robot: thin rclpy nodes around ROS-free cores. The only room that imports rclpy."""
