"""The exit statuses of `nld`, spelled once: `nld train` ends with them, scheduler scripts and records read them."""

FINISHED = 0
FAILED = 1  # a rank failed or died
REFUSED = 2  # a user error: nothing started, nothing is lost
CHAIN_STOPS = 3  # of `nld requeue` alone: the job does not go on
UNHEALTHY_NODE = 69  # a node failed its check before the start: EX_UNAVAILABLE of sysexits.h
STOPPED = 75  # saved before the end, the same command goes on: EX_TEMPFAIL of sysexits.h
LEFT_AT_ONCE = 130  # after the second Ctrl-C: 128 + SIGINT
CANCELLED_JOB = 143  # of a scheduler's script: 128 + SIGTERM

MEANING = {
    FINISHED: "finished",
    REFUSED: "refused at the door",
    UNHEALTHY_NODE: "a node failed its check",
    STOPPED: "asked to stop, saved",
    LEFT_AT_ONCE: "left at once, not saved",
}
