"""What happened: datasets to train from and recordings of a robot, each made of the other too, and video.

Import the module you need (`episodes.dataset`, `episodes.bag`, `episodes.video`): the package itself loads nothing.
"""
