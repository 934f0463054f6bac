"""The 50 tasks of Meta-World v3 and what each asks for, in words."""

from __future__ import annotations

import difflib

EPISODE_STEPS = 500
"""Meta-World's own time limit, in control steps (SawyerXYZEnv.max_path_length)."""

TASKS: dict[str, str] = {
    "assembly": "pick up the nut and place it onto the peg",
    "basketball": "dunk the basketball into the basket",
    "bin-picking": "pick the block from one bin and place it into the other bin",
    "box-close": "grasp the cover and close the box with it",
    "button-press-topdown": "press the button from the top",
    "button-press-topdown-wall": "reach over the wall and press the button from the top",
    "button-press": "press the button",
    "button-press-wall": "reach around the wall and press the button",
    "coffee-button": "push the button on the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "rotate the dial",
    "disassemble": "pick the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door by turning the lock clockwise",
    "door-open": "open the door with its handle",
    "door-unlock": "unlock the door by turning the lock counter-clockwise",
    "drawer-close": "push the drawer closed",
    "drawer-open": "open the drawer",
    "faucet-close": "turn the faucet clockwise",
    "faucet-open": "turn the faucet counter-clockwise",
    "hammer": "hammer the nail into the wall",
    "hand-insert": "insert the gripper into the hole",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg sideways into the hole",
    "peg-unplug-side": "unplug the peg sideways",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "pick up the puck and bring it to the goal",
    "pick-place-wall": "pick up the puck, lift it over the wall and bring it to the goal",
    "plate-slide-back-side": "pull the plate out of the cabinet sideways",
    "plate-slide-back": "pull the plate back out of the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide": "slide the plate into the cabinet",
    "push-back": "pull the puck back to the goal",
    "push": "push the puck to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "move the gripper to the goal",
    "reach-wall": "move the gripper around the wall to the goal",
    "shelf-place": "pick up the block and place it onto the shelf",
    "soccer": "kick the ball into the goal",
    "stick-pull": "grasp the stick and pull the box with it",
    "stick-push": "grasp the stick and push the box with it",
    "sweep-into": "sweep the block into the hole",
    "sweep": "sweep the block off the table",
    "window-close": "push the window closed",
    "window-open": "push the window open",
}
"""Task name, without Meta-World's `-v3`, -> instruction."""


def instruction(task: str) -> str:
    """What `task` asks for, as a sentence that a language-conditioned policy reads.

    Raises:
        ValueError: no such task; names the nearest ones.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task.removesuffix("-v3"), TASKS, n=3, cutoff=0.4) or sorted(TASKS)[:3]
        raise ValueError(f"no task {task!r}; did you mean {', '.join(near)}? (there are {len(TASKS)})")
    return TASKS[task]
