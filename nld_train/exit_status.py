"""The exit statuses of `nld`, spelled once. `nld train` ends with them; scheduler scripts and records read them."""

FINISHED = 0
FAILED = 1  # a rank failed or died; of other commands: a check or a comparison failed
REFUSED = 2  # a user error: no step was taken, nothing is lost
CHAIN_STOPS = 3  # `nld requeue` alone: the job does not go on
UNHEALTHY_NODE = 69  # a node failed its check before the start: EX_UNAVAILABLE of sysexits.h
STOPPED = 75  # saved before the last step, and the same command goes on: EX_TEMPFAIL of sysexits.h
LEFT_AT_ONCE = 130  # after the second Ctrl-C: 128 + SIGINT
CANCELLED_JOB = 143  # a scheduler's script alone: 128 + SIGTERM

# What records and reports call a status. A failed run is named with its number, because srun may give another one.
MEANING = {
    FINISHED: "finished",
    REFUSED: "refused before its first step",
    UNHEALTHY_NODE: "a node failed its check",
    STOPPED: "asked to stop, saved",
    LEFT_AT_ONCE: "left at once, not saved",
}
