"""Quadrupeds in MuJoCo: published figures, models made from them, terrain, many of them stepped together, and the task.

MuJoCo is imported when a model is built, so the figures can be read where it is not installed.
"""
