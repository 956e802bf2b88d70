"""Today's Minari ids for D4RL's names, FQL's spelling and the ids of Minari before version 0.5."""

import re
from typing import Optional

_RENAMED = {
    r"(halfcheetah|hopper|walker2d|ant)-(medium|expert)": r"mujoco/\1/\2-v0",
    r"(pen|door|hammer|relocate)-(human|cloned|expert)": r"D4RL/\1/\2-v2",
    r"kitchen-(complete|partial|mixed)": r"D4RL/kitchen/\1-v2",
    r"antmaze-(umaze|umaze-diverse|(?:medium|large)-(?:play|diverse))": r"D4RL/antmaze/\1-v1",
    r"(?:maze2d|pointmaze)-((?:open|umaze|medium|large)(?:-dense)?)": r"D4RL/pointmaze/\1-v2",
}


def minari_id(name: str) -> Optional[str]:
    """The id that holds what another name asks for, e.g. "mujoco/hopper/medium-v0" for "hopper-medium-v2".

    `name` may have D4RL's or Minari's namespace before it, its parts may be joined by / or -, in any case of letters.
    None where nothing of Farama's server stands for it. mujoco/* were collected anew: the same task, other data.
    """
    flat = re.sub(r"-v\d+$", "", name.lower().replace("/", "-"))
    flat = re.sub(r"^(minari-)?(d4rl-|mujoco-)?", "", flat)
    for pattern, today in _RENAMED.items():
        match = re.fullmatch(pattern, flat)
        if match:
            return match.expand(today)
    return None
