"""The names of the files in a run's folder."""

CONFIG = "config.yaml"  # complete
ENVIRONMENT = "environment.json"  # algorithm, versions, device, identity of the data
TRAIN_LOG, EVAL_LOG = "train.csv", "eval.csv"
CHECKPOINT = "checkpoint.pt"
RESULT = "result.json"  # marks the run as finished
LEARNING_CURVE = "learning_curve.png"
LOCK = "lock"  # of the process that works on the run
DIVERGENCE = "divergence.json"  # the update with which training diverged
SWEEP = "evaluation.csv"  # of one setting of the act options; a sweep's are <first swept option>.csv and .png
EPISODES = "episodes.csv"  # every episode of the sweeps
REEVALUATION = "reevaluation.csv"  # of a comparison: one line for each cell of act options
LOG, ERROR = "log.txt", "error.txt"  # of a comparison's process: what it printed, its last lines where it failed

SCORES = (SWEEP, EPISODES, REEVALUATION)  # of the agent in the folder, beside a sweep's
ALL = (
    *(CONFIG, ENVIRONMENT, TRAIN_LOG, EVAL_LOG, CHECKPOINT, RESULT, LOCK, DIVERGENCE, LEARNING_CURVE),
    *(*SCORES, LOG, ERROR),
)  # but those of sweeps and those in folders
# Of an online phase: part_<step>.npz holds the transitions up to that step's checkpoint since the one before.
REPLAY_FOLDER, REPLAY_PARTS = "replay", "replay/part_*.npz"
TENSORBOARD_FOLDER = "tensorboard"
KEPT_CHECKPOINTS = "checkpoints"  # <step>/ holds what loading a run needs
NEEDED_TO_LOAD = (ENVIRONMENT, CONFIG, CHECKPOINT)
KEPT = (*NEEDED_TO_LOAD, *SCORES, LOCK)  # in a kept checkpoint's folder
PATTERNS = (REPLAY_PARTS, "tensorboard/events.*")  # in other folders
