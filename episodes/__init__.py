"""What happened: datasets to train from, recordings of a robot, video; each converts to the others.

Import the module you need (`episodes.dataset`, `episodes.bag`, `episodes.video`): the package itself loads nothing.
"""
